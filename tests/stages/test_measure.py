"""What the measuring stages count, on a clock of the test's own."""

import asyncio
import contextlib
import time

import pytest
from prometheus_client import CollectorRegistry

from sona_stream.errors import UpstreamTimeout
from sona_stream.events import Delta, Finish, Head, Request
from sona_stream.stages import Meter, measure, overhead

ASKED = Request(id="r1", endpoint="chat.completions", model="m", body=b"{}")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Rig:
    """A backend that takes 1 s to enter, then 2 s, 4 s... a step; the stages around it work 0.5 s an event."""

    def __init__(self, *steps):
        self.clock = Clock()
        self.registry = CollectorRegistry(auto_describe=True)
        self.meter = Meter(self.registry, clock=self.clock)
        self.steps = steps
        inner = self._work(measure(self.meter, "m")(self._backend))
        self.handler = overhead(self.meter, frozenset({"m"}))(inner)

    @contextlib.asynccontextmanager
    async def _backend(self, request):
        self.clock.now += 1
        yield self._play()

    async def _play(self):
        for i, step in enumerate(self.steps):
            self.clock.now += 2 << i
            if isinstance(step, BaseException):
                raise step
            yield step

    def _work(self, handler):
        @contextlib.asynccontextmanager
        async def handle(request):
            async with handler(request) as events:
                yield self._slowly(events)

        return handle

    async def _slowly(self, events):
        async for event in events:
            self.clock.now += 0.5
            yield event

    def value(self, name, **labels):
        labels = {"gen_ai_operation_name": "chat", "gen_ai_request_model": "m", **labels}
        return self.registry.get_sample_value(name, labels)

    async def run(self, most=99):
        async with self.handler(ASKED) as events:
            async for _ in events:
                self.clock.now += 10  # the client reads slowly
                most -= 1
                if not most:
                    return


async def test_overhead_is_neither_the_backends_time_nor_the_clients():
    rig = Rig(Head(model="m"), Delta(raw=b"x"), Finish())
    await rig.run()
    assert rig.value("sona_overhead_seconds_sum") == pytest.approx(3 * 0.5)
    assert rig.value("gen_ai_client_operation_time_to_first_chunk_seconds_sum") == pytest.approx(1 + 2 + 4 + 10.5)
    duration = rig.value("gen_ai_client_operation_duration_seconds_sum", error_type="")
    assert duration == pytest.approx(1 + 2 + 4 + 8 + 3 * 10.5)
    assert rig.meter.waited == {}


@pytest.mark.parametrize(
    ("steps", "most", "error"),
    [
        ((Head(model="m"), UpstreamTimeout("late")), 99, "upstream_timeout"),
        ((Head(model="m"), Delta(raw=b"x"), RuntimeError("bug")), 99, "internal_error"),
        ((Head(model="m"), Delta(raw=b"x"), asyncio.CancelledError()), 99, "cancelled"),
        ((Head(model="m"), Delta(raw=b"x"), Finish()), 2, "cancelled"),
    ],
)
async def test_how_an_attempt_ended_is_a_label_and_only_whole_answers_have_overhead(steps, most, error):
    rig = Rig(*steps)
    with contextlib.suppress(UpstreamTimeout, RuntimeError, asyncio.CancelledError):
        await rig.run(most)
    assert rig.value("gen_ai_client_operation_duration_seconds_count", error_type=error) == 1
    assert rig.value("sona_overhead_seconds_count") is None
    assert rig.meter.waited == {}


async def test_names_that_nobody_configured_share_one_label():
    rig = Rig(Head(model="whatever"), Finish())
    await rig.run()
    assert rig.value("sona_overhead_seconds_count", gen_ai_request_model="other") == 1


async def test_a_chunk_costs_next_to_nothing():
    meter = Meter(CollectorRegistry(auto_describe=True))
    events = [Head(model="m"), *[Delta(raw=b"x")] * 20_000, Finish()]

    @contextlib.asynccontextmanager
    async def backend(request):
        async def play():
            for event in events:
                yield event

        yield play()

    async def seconds(handler):
        began = time.thread_time()
        async with handler(ASKED) as stream:
            async for _ in stream:
                pass
        return time.thread_time() - began

    measured = overhead(meter, frozenset({"m"}))(measure(meter, "m")(backend))
    added = min([await seconds(measured) for _ in range(3)]) - min([await seconds(backend) for _ in range(3)])
    assert added / len(events) < 5e-6  # 2 us on a machine with nothing else to do
