"""Another model answers: what was remembered for the old one is made anew from its text, in peace, and once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from sona_stream.app import renewal
from sona_stream.app.renewal import Renewal
from sona_stream.episodes import EpisodeText
from sona_stream.errors import HostAway, HostError, UpstreamError
from sona_stream.events import Delta, Finish, Head

CITIES = ["Paris", "Rome", "Oslo", "Lima", "Cairo"]


class Model:
    """Host and backend of one model. Prompts and answers are as long as their text."""

    adaptable = True

    def __init__(self, make, fingerprint="new", dim=16):
        self.make, self.fingerprint, self.name = make, fingerprint, "m"
        self.space = make.space(dim, fingerprint)
        self.encoded, self.released, self.requests = [], [], []
        self.before = None
        """Called with the answer's text before it is encoded."""
        self.upstream = None
        self.ids = True

    @property
    def host(self):
        return self

    @contextlib.asynccontextmanager
    async def __call__(self, request):
        if self.upstream is not None:
            raise self.upstream
        self.requests.append(request)

        async def events():
            yield Head(model="m", prompt_ids=tuple(map(len, request.query.split())) if self.ids else ())
            yield Delta(raw=b"never read")
            yield Finish()

        async with contextlib.aclosing(events()) as stream:
            yield stream

    async def encode(self, prompt_ids, answer, *, request_id, hidden):
        assert hidden
        if self.before is not None:
            self.before(answer)
        await asyncio.sleep(0)
        self.encoded.append((tuple(prompt_ids), answer))
        ids = np.frombuffer(answer.encode(), np.uint8).astype(np.int32)
        states = np.outer(ids, np.ones(len(self.space.mean))).astype(np.float32)
        return SimpleNamespace(hidden=states, token_ids=ids, fingerprint=self.fingerprint)

    async def hidden_space(self):
        return self.space

    async def release(self, request_id):
        self.released.append(request_id)


class OneModel(dict):
    """`Hosts` of the model m."""

    def host(self, name):
        return self[name]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in ("_POLL_S", "_BEGIN_S", "_PAUSE_S", "_AGAIN_S"):
        monkeypatch.setattr(renewal, name, 0.001)
    monkeypatch.setattr(renewal, "_PAGE", 2)


def body(question):
    said = {"model": "m", "messages": [{"role": "user", "content": question}], "n": 3, "stream": True}
    options = {"max_tokens": 700, "stream_options": {"include_usage": True}, "logit_bias": {"7": 5}}
    return json.dumps({**said, **options}).encode()


async def remember(memory, make, cities=CITIES):
    for city in cities:
        text = f"What about {city}?"
        said = EpisodeText(answer=f"it is {city}", body=body(text))
        await memory.remember(dataclasses.replace(make.record(text, f"it is {city}"), text=said))


@contextlib.asynccontextmanager
async def renewing(memory, model):
    made = Renewal(memory, OneModel(m=model), {"m": [model]})
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def anew(made, **counts):
    known = made.stats().get("m", {})
    return all(known.get(name, 0) == count for name, count in counts.items())


async def test_all_of_them_act_again_newest_first(opened, make):
    async with opened("text") as (_, memory):
        await remember(memory, make)
        before = {one.created_at for one in await memory.episodes()}
        model = Model(make)
        now = make.viewer(fingerprint="new")
        assert not memory.holds(now)
        async with renewing(memory, model) as made:
            await until(lambda: anew(made, made_anew=5, waiting=0))
            assert made.stats() == {"m": {"made_anew": 5, "waiting": 0, "refused": 0, "without_text": 0}}
        assert [answer for _, answer in model.encoded] == [f"it is {city}" for city in reversed(CITIES)]
        for city in CITIES:
            (key,) = make.acting(memory, f"What about {city}?", now)
            assert bytes(memory.states(key).token_ids.astype(np.uint8)).decode() == f"it is {city}"
            assert make.acting(memory, f"What about {city}?") == []
        assert memory.counters()["renewed"] == 5
        assert {one.created_at for one in await memory.episodes()} == before
        for request in model.requests:
            asked = json.loads(request.body)
            assert (asked["max_tokens"], request.sampling.n, request.stream, request.adapt) == (1, 1, False, False)
            assert request.objections == ()
            assert request.id in model.released


async def test_what_has_no_text_is_said_and_left(opened, make, caplog):
    async with opened("features") as (_, memory):
        await remember(memory, make)
        model = Model(make)
        with caplog.at_level("INFO"):
            async with renewing(memory, model) as made:
                await until(lambda: anew(made, without_text=5))
        assert "5 wait to expire because their text is not kept (sona.storage: text would keep it)" in caplog.text
        assert model.requests == []
        assert len(await memory.episodes()) == 5
        assert not any(one.renewable for one in await memory.episodes())


async def test_nothing_is_done_while_the_model_is_the_same(opened, make):
    async with opened("text") as (_, memory):
        await remember(memory, make)
        model = Model(make, "fp")
        async with renewing(memory, model) as made:
            await asyncio.sleep(0.1)
            assert made.stats() == {}
        assert model.requests == []


async def test_one_that_is_refused_costs_the_others_nothing(opened, make, caplog):
    async with opened("text") as (_, memory):
        await remember(memory, make)
        model = Model(make)

        def refuse(answer):
            if "Oslo" in answer:
                raise HostError("70 tokens are beyond the context of 64")

        model.before = refuse
        async with renewing(memory, model) as made:
            await until(lambda: anew(made, made_anew=4, refused=1, waiting=0))
        assert "beyond the context of 64" in caplog.text
        assert len(await memory.stale("m", "new")) == 1
        assert sum(one.id in model.released for one in model.requests) == 5


@pytest.mark.parametrize("away", [HostAway("gone"), UpstreamError("m: 503", status=503)])
async def test_a_host_that_leaves_is_waited_for(opened, make, away):
    async with opened("text") as (_, memory):
        await remember(memory, make)
        model, left = Model(make), []

        def leave(answer):
            if len(model.encoded) == 2 and len(left) < 3:
                left.append(answer)
                raise away if isinstance(away, HostAway) else HostAway("gone")

        model.before = leave
        if isinstance(away, UpstreamError):
            model.upstream = away
        async with renewing(memory, model) as made:
            if model.upstream is not None:
                await asyncio.sleep(0.05)
                assert model.encoded == []
                model.upstream = None
            await until(lambda: anew(made, waiting=0) and len(model.encoded) == 5)
        assert len(left) == 3
        assert len({answer for _, answer in model.encoded}) == 5


async def test_a_request_that_the_upstream_refuses_is_not_asked_again(opened, make):
    async with opened("text") as (_, memory):
        await remember(memory, make, ["Paris"])
        model = Model(make)
        model.upstream = UpstreamError("m: 400: too long", status=400)
        async with renewing(memory, model) as made:
            await until(lambda: anew(made, refused=1, waiting=0))
        model.upstream, model.ids = None, False
        async with renewing(memory, model) as made:
            await until(lambda: anew(made, refused=1, waiting=0))


async def test_a_crash_in_between_loses_nothing_and_repeats_nothing(opened, make):
    done = []
    for run in range(4):
        async with opened("text") as (_, memory):
            if run == 0:
                await remember(memory, make)
            model = Model(make)

            def fail(answer, model=model):
                if len(model.encoded) == 2:
                    raise KeyboardInterrupt  # the process ends here

            model.before = fail
            made = Renewal(memory, OneModel(m=model), {"m": [model]})
            names = [one.key for one in await memory.stale("m", "new")]
            for key in names:
                try:
                    await made._renew("m", model, key)
                except KeyboardInterrupt:
                    break
            done += [answer for _, answer in model.encoded]
    assert sorted(done) == sorted(f"it is {city}" for city in CITIES)


async def test_another_model_in_the_middle_begins_anew(opened, make):
    async with opened("text") as (_, memory):
        await remember(memory, make)
        first, second = Model(make), Model(make, "newer", 20)
        hosts, backends = OneModel(m=first), {"m": [first]}

        def swap(answer):
            if len(first.encoded) == 2:
                hosts["m"], backends["m"] = second, [second]

        first.before = swap
        made = Renewal(memory, hosts, backends)
        task = asyncio.create_task(made.run())
        try:
            await until(lambda: len(second.encoded) == 5 and anew(made, waiting=0))
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert len(first.encoded) == 3
        now = make.viewer(fingerprint="newer")
        assert all(make.acting(memory, f"What about {city}?", now) for city in CITIES)


async def test_what_is_forgotten_meanwhile_stays_forgotten(opened, make):
    async with opened("text") as (_, memory):
        await remember(memory, make)
        model, tasks = Model(make), []

        def forget(answer):
            if not tasks:
                tasks.append(asyncio.ensure_future(memory.forget(tenant="acme")))

        model.before = forget
        async with renewing(memory, model) as made:
            await until(lambda: anew(made, waiting=0) and made.stats() != {})
        await tasks[0]
        assert await memory.episodes() == []
        assert not memory.holds(make.viewer(fingerprint="new"))
