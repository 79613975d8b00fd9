"""The stages alone and stacked, with scripted handlers for the faults a real backend won't produce on demand."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest

from sona_stream.errors import NotFound, UpstreamError, UpstreamProtocolError, UpstreamUnreachable
from sona_stream.events import (
    AdapterRef,
    Delta,
    Event,
    Finish,
    Head,
    Piece,
    Request,
    RouteDecision,
    Score,
    Trajectory,
)
from sona_stream.stages import adapt, fallback, record, route, score


def ask(**changes: object) -> Request:
    request = Request(id="sr-1", endpoint="chat.completions", model="sona/auto", body=b"{}", query="why?")
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


class Scripted:
    """Plays events; an exception in the script is raised there. Remembers what it was asked and how it ended."""

    def __init__(self, *script: Event | Exception | None) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.left = 0

    def __call__(self, request: Request) -> object:
        @asynccontextmanager
        async def handle() -> AsyncIterator[AsyncIterator[Event]]:
            self.requests.append(request)
            try:
                yield self._play()
            finally:
                self.left += 1

        return handle()

    async def _play(self) -> AsyncIterator[Event]:
        for item in self.script:
            if item is None:
                await asyncio.sleep(3600)
            elif isinstance(item, Exception):
                raise item
            else:
                yield item


def answer(text: str, model: str = "m") -> tuple[Event, ...]:
    return (
        Head(model=model, prompt_ids=(1, 2)),
        Delta(pieces=(Piece(text=text, token_ids=(7,)),)),
        Finish(reason="stop", completion_id="cmpl-1"),
    )


async def collect(handler, request: Request, got: list[Event] | None = None) -> list[Event]:
    got = [] if got is None else got
    async with handler(request) as events:
        async for event in events:
            got.append(event)
    return got


class Sink:
    def __init__(self) -> None:
        self.seen: list[Trajectory] = []

    def submit(self, trajectory: Trajectory) -> None:
        self.seen.append(trajectory)


# ---- fallback


async def test_fallback_takes_the_next_model_before_the_first_byte_and_says_so():
    dead = Scripted(UpstreamUnreachable("refused", retryable=True))
    good = Scripted(*answer("hi"))
    decision = RouteDecision(model="a", reason="pattern:CodeGen", fallbacks=("b",))
    events = await collect(fallback({"a": [dead], "b": [good]}), ask(route=decision))
    assert isinstance(events[0], Head)
    assert events[0].route is not None
    assert (events[0].route.model, events[0].route.reason) == ("b", "fallback:a")
    assert good.requests[0].model == "b"
    assert dead.left == good.left == 1


@pytest.mark.parametrize("head_first", [False, True])
async def test_an_error_after_head_but_before_content_still_falls_back(head_first: bool):
    script = (Head(model="a"),) if head_first else ()
    dead = Scripted(*script, UpstreamError("overloaded", status=503, retryable=True))
    events = await collect(
        fallback({"a": [dead], "b": [Scripted(*answer("hi"))]}),
        ask(route=RouteDecision(model="a", reason="named", fallbacks=("b",))),
    )
    assert sum(isinstance(event, Head) for event in events) == 1


async def test_after_the_first_content_nothing_is_repeated():
    dies = Scripted(*answer("hi")[:2], UpstreamProtocolError("died", retryable=True))
    spare = Scripted(*answer("again"))
    got: list[Event] = []
    request = ask(route=RouteDecision(model="a", reason="named", fallbacks=("b",)))
    with pytest.raises(UpstreamProtocolError):
        await collect(fallback({"a": [dies], "b": [spare]}), request, got)
    assert len(got) == 2
    assert spare.requests == []


async def test_a_client_error_is_not_retried_and_the_last_error_is_kept():
    bad = Scripted(UpstreamError("bad request", status=400, body=b"theirs"))
    spare = Scripted(*answer("x"))
    handler = fallback({"a": [bad, spare]})
    with pytest.raises(UpstreamError) as caught:
        await collect(handler, ask(route=RouteDecision(model="a", reason="named")))
    assert caught.value.body == b"theirs"
    assert spare.requests == []
    both = [Scripted(UpstreamError(str(i), status=500 + i, retryable=True)) for i in range(2)]
    with pytest.raises(UpstreamError) as caught:
        await collect(fallback({"a": both}), ask(route=RouteDecision(model="a", reason="named")))
    assert caught.value.status == 501


async def test_deployments_take_turns_and_a_failed_one_waits():
    now = [0.0]
    bad, good = Scripted(UpstreamUnreachable("x", retryable=True)), Scripted(*answer("y"))
    handler = fallback({"a": [bad, good]}, clock=lambda: now[0])
    request = ask(route=RouteDecision(model="a", reason="named"))
    for _ in range(6):
        await collect(handler, request)
    assert len(bad.requests) == 1  # then it is tried last, and the other one always answers
    now[0] = 11.0
    for _ in range(2):
        await collect(handler, request)
    assert len(bad.requests) == 2


async def test_an_unknown_model_is_not_found():
    with pytest.raises(NotFound, match="nope"):
        await collect(fallback({}), ask(route=RouteDecision(model="nope", reason="named")))


# ---- record


async def test_record_keeps_what_storage_allows():
    for keep, ids, text in (("none", (), None), ("features", (7,), None), ("text", (7,), "hi")):
        sink = Sink()
        await collect(record(sink, keep)(Scripted(*answer("hi"))), ask(embedding=np.ones(2, np.float32)))  # type: ignore[arg-type]
        (trajectory,) = sink.seen
        assert trajectory.outcome == "complete"
        assert trajectory.completion_id == "cmpl-1"
        assert trajectory.token_ids == ids
        assert trajectory.answer == text
        assert trajectory.embedding is not None
        assert (trajectory.body is None) == (keep != "text")


async def test_record_tells_failed_from_cancelled():
    sink = Sink()
    with pytest.raises(UpstreamError):
        await collect(record(sink, "none")(Scripted(Head(model="m"), UpstreamError("x"))), ask())
    hanging = Scripted(*answer("hi")[:2], None)
    task = asyncio.create_task(collect(record(sink, "none")(hanging), ask()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with record(sink, "none")(Scripted(*answer("hi")))(ask()) as events:
        await anext(events)  # leaves early
    assert [t.outcome for t in sink.seen] == ["failed", "cancelled", "cancelled"]
    assert hanging.left == 1


# ---- adapt


class Fixed:
    def resolve(self, request: Request) -> AdapterRef | None:
        return None if request.constrained else AdapterRef(key="m/default/*", version=3)

    def bare_reason(self, request: Request) -> str:
        return "constrained: not yet"

    def at_hand(self, request: Request, adapter: AdapterRef) -> bool:
        return True


async def test_adapt_names_the_adapter_unless_told_otherwise():
    pinned, other = (AdapterRef(key=f"{model}/default/*", version=1, pinned=True) for model in ("m", "m/other"))
    cases: Sequence[tuple[dict[str, object], int | None]] = (
        ({}, 3),
        ({"adapt": False}, None),
        ({"adapt": False, "pinned": pinned}, None),
        ({"pinned": pinned}, 1),
        ({"pinned": other}, None),  # a fallback has not the adapter of the model it stands in for
        ({"constrained": True}, None),
    )
    for changes, version in cases:
        backend = Scripted(*answer("x"))
        await collect(adapt(Fixed())(backend), ask(model="m", **changes))
        chosen = backend.requests[0].adapter
        assert (chosen.version if chosen else None) == version


async def test_adapt_brings_what_the_host_had_to_let_go_before_the_model_is_asked():
    class Away(Fixed):
        def at_hand(self, request: Request, adapter: AdapterRef) -> bool:
            return adapter in brought

        async def bring(self, request: Request, adapter: AdapterRef) -> None:
            assert not backend.requests
            brought.append(adapter)

    backend, resolver, brought = Scripted(*answer("x")), Away(), list[AdapterRef]()
    for _ in range(2):
        events = await collect(adapt(resolver)(backend), ask(model="m"))
        assert [type(event) for event in events] == [Head, Delta, Finish]
        assert backend.requests.pop().adapter == AdapterRef(key="m/default/*", version=3)
    assert len(brought) == 1


async def test_adapt_says_why_a_request_gets_the_bare_model():
    for changes, reason in (
        ({"constrained": True}, "constrained: not yet"),
        ({"constrained": True, "adapt": False}, ""),
        ({}, ""),
    ):
        events = await collect(adapt(Fixed())(Scripted(*answer("x"))), ask(model="m", **changes))
        assert isinstance(events[0], Head)
        assert events[0].bare_reason == reason
        assert [type(event) for event in events] == [Head, Delta, Finish]


# ---- score


class Lengths:
    def __init__(self, fail_at: str = "") -> None:
        self.fail_at, self.n = fail_at, 0

    def push(self, delta: Delta) -> None:
        if self.fail_at == "push":
            raise RuntimeError("scorer bug")
        self.n += sum(len(piece.text) for piece in delta.pieces)

    def finish(self, finish: Finish | None) -> Score:
        if self.fail_at == "finish":
            raise RuntimeError("scorer bug")
        return Score(value=self.n / 10, parts={"length": self.n / 10})


async def test_score_puts_its_verdict_on_finish():
    events = await collect(score(lambda request: Lengths())(Scripted(*answer("hello"))), ask())
    assert isinstance(events[-1], Finish)
    assert events[-1].score == Score(value=0.5, parts={"length": 0.5})


@pytest.mark.parametrize("fail_at", ["begin", "push", "finish"])
async def test_a_broken_scorer_never_breaks_the_answer(fail_at: str, caplog: pytest.LogCaptureFixture):
    def begin(request: Request) -> Lengths:
        if fail_at == "begin":
            raise RuntimeError("scorer bug")
        return Lengths(fail_at)

    with caplog.at_level(logging.ERROR):
        events = await collect(score(begin)(Scripted(*answer("hello"))), ask())
    assert [type(event) for event in events] == [Head, Delta, Finish]
    assert events[-1].score is None  # type: ignore[union-attr]
    assert "scorer" in caplog.text


# ---- route


class Embed:
    name, dim = "fake", 2

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def embed(self, texts: Sequence[str]) -> np.ndarray:
        if self.error:
            raise self.error
        return np.ones((len(texts), 2), np.float32)


class ToB:
    async def route(self, request: Request) -> RouteDecision:
        return RouteDecision(model="b", reason="default" if request.embedding is None else "pattern")


async def test_route_embeds_and_decides_and_survives_a_dead_embedder():
    backend = Scripted(*answer("x"))
    await collect(route(ToB(), Embed())(backend), ask())
    await collect(route(ToB(), Embed(UpstreamUnreachable("embedder down")))(backend), ask())
    await collect(route(ToB(), Embed())(backend), ask(query=""))
    assert [r.route.reason for r in backend.requests if r.route] == ["pattern", "default", "default"]
    assert all(r.model == "b" for r in backend.requests)
    assert backend.requests[0].embedding is not None
