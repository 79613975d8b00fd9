"""Rows about the stream: mock model -> adapt (d = 3072, every token) -> score -> record, in process, on one core.

The mock stands for a host: it has a hidden state for every token, and applies the micro-LoRA to it when the adapt
stage has named an adapter. A control without adapter shows what adapting costs.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager

import numpy as np
from report import Report

from sona_stream import plugins
from sona_stream.config.settings import ScoringSettings
from sona_stream.engine import SonaConfig, SonaEngine
from sona_stream.events import AdapterRef, Delta, Event, Finish, Head, Piece, Request, Trajectory, Usage
from sona_stream.protocols import Handler
from sona_stream.quality import create_combined
from sona_stream.stages import adapt, record, score

from .inputs import DIM, trained, units
from .plan import Run, compared
from .rounds import middle, original_block

__all__ = ["Collector", "Model", "add_rows", "pipeline", "request"]

MS = 1e3
ANSWER = 256
"""tokens of one answer"""
PACE_S = 0.02
"""between two tokens of one paced stream: 50 tokens a second"""
_WORDS = [
    "The",
    " quick",
    " brown",
    " fox",
    " jumps",
    " over",
    " a",
    " lazy",
    " dog",
    ".",
    " Then",
    " it",
    " rests",
]


class Model:
    """A scripted model of the in-process kind. ``born`` is when the newest token left it."""

    def __init__(self, engine: SonaEngine, pace_s: float = 0.0) -> None:
        random = np.random.default_rng(7)
        self._engine = engine
        self._hidden = list(units(64, DIM, random))
        self._pace_s = pace_s
        self._pieces = [
            Piece(text=_WORDS[i % len(_WORDS)], token_ids=(int(i),), logprobs=(-0.3 - 0.01 * (i % 40),))
            for i in random.integers(0, 4096, 512)
        ]
        self.adapted = 0

    @asynccontextmanager
    async def __call__(self, request: Request) -> AsyncIterator[AsyncIterator[Event]]:
        async with aclosing(self._answer(request)) as events:
            yield events

    async def _answer(self, request: Request) -> AsyncGenerator[Event, None]:
        yield Head(model="mock", adapter=request.adapter)
        for t in range(ANSWER):
            if self._pace_s:
                await asyncio.sleep(self._pace_s)
            piece = self._pieces[t % len(self._pieces)]
            self.born = time.perf_counter()
            if request.adapter is not None:
                self._engine.apply_micro_lora(self._hidden[t & 63])
                self.adapted += 1
            yield Delta(pieces=(piece,))
        yield Finish(reason="stop", usage=Usage(prompt_tokens=8, completion_tokens=ANSWER))


class Collector:
    """Takes the trajectories, as the store's inbox would."""

    def __init__(self) -> None:
        self.trajectories: list[Trajectory] = []

    def submit(self, trajectory: Trajectory) -> None:
        """Keeps it."""
        self.trajectories.append(trajectory)


class _Adapters:
    def resolve(self, request: Request) -> AdapterRef | None:
        return AdapterRef(key="mock/default/*", version=1)

    def at_hand(self, request: Request, adapter: AdapterRef) -> bool:
        return True


def pipeline(model: Handler, sink: Collector) -> Handler:
    """The real stages with all the built-in scorers."""
    scoring = ScoringSettings()
    scorers = [plugins.load("scorers", name)(scoring) for name in plugins.available("scorers")]
    return record(sink, "features")(score(create_combined(scorers).begin)(adapt(_Adapters())(model)))


def request(number: int, *, adapted: bool = True) -> Request:
    """One question to the mock."""
    body = b'{"model":"mock","stream":true,"messages":[{"role":"user","content":"hello"}]}'
    return Request(
        id=f"req-{number}", endpoint="chat.completions", model="mock", body=body, query="hello",
        messages=({"role": "user", "content": "hello"},), stream=True, adapt=adapted,
    )  # fmt: skip


def add_rows(report: Report, run: Run) -> None:
    """`pipeline_tokens_per_s` and `token_added_p99_ms`."""
    engine = trained(SonaConfig.realtime(DIM))
    with _one_core() as pinned:
        rates, bare = _throughput(engine, run)
        added = [_latency(engine, run) for _ in range(run.effort.repeats)]
    theirs = None
    if run.original:
        run.original.ask("make", name="stream", profile="realtime", change={})
        tokens = original_block(run.original, "tokens", name="stream")
        theirs = middle([256 / tokens(256) for _ in range(run.effort.rounds)])
    versus = compared(
        middle(rates), guide=2000, original=theirs, more_is_better=True, without_adapter=middle(bare),
        remark="the original has no stream, scores or records: its figure is the adapter and a trajectory alone"
        + ("" if pinned else "; this system cannot bind a process to one core"),
    )  # fmt: skip
    report.measured("pipeline_tokens_per_s", rates, "tokens/s", goal=50_000, direction=">=", compared=versus)
    p99 = [MS * float(np.percentile(values, 99)) for values in added]
    p50 = [MS * float(np.percentile(values, 50)) for values in added]
    remark = f"{run.effort.streams} streams at once, {1 / PACE_S:g} tokens/s each"
    versus = compared(middle(p99), guide=0.5, p50=middle(p50), remark=remark)
    report.measured("token_added_p99_ms", p99, "ms", goal=0.5, compared=versus)


def _throughput(engine: SonaEngine, run: Run) -> tuple[list[float], list[float]]:
    """Tokens a second through the whole pipeline, with the adapter and without, in turn."""
    answers = max(1, run.effort.tokens // ANSWER // run.effort.rounds)
    rates: dict[bool, list[float]] = {True: [], False: []}
    asyncio.run(_answers(engine, 2, adapted=True))
    for _ in range(run.effort.rounds):
        for adapted, into in rates.items():
            into.append(answers * ANSWER / asyncio.run(_answers(engine, answers, adapted=adapted)))
    return rates[True], rates[False]


async def _answers(engine: SonaEngine, count: int, *, adapted: bool) -> float:
    """Seconds for so many answers, one after the other."""
    model, sink = Model(engine), Collector()
    handle = pipeline(model, sink)
    questions = [request(i, adapted=adapted) for i in range(count)]
    began = time.perf_counter()
    for question in questions:
        async with handle(question) as events:
            async for _ in events:
                pass
    seconds = time.perf_counter() - began
    if len(sink.trajectories) != count or model.adapted != (count * ANSWER if adapted else 0):
        raise RuntimeError("tokens were lost on the way")
    if any(trajectory.score.value is None for trajectory in sink.trajectories):
        raise RuntimeError("an answer was not scored")
    return seconds


def _latency(engine: SonaEngine, run: Run) -> list[float]:
    """Seconds between a token's birth in the model and its arrival at the consumer, over all streams."""
    return asyncio.run(_paced(engine, run.effort.streams))


async def _paced(engine: SonaEngine, streams: int) -> list[float]:
    sink = Collector()
    added: list[float] = []

    async def consume(number: int) -> None:
        model = Model(engine, PACE_S)
        await asyncio.sleep(PACE_S * number / streams)
        async with pipeline(model, sink)(request(number)) as events:
            async for event in events:
                arrived = time.perf_counter()
                if isinstance(event, Delta):
                    added.append(arrived - model.born)

    await asyncio.gather(*(consume(i) for i in range(streams)))
    return added


@contextmanager
def _one_core() -> Iterator[bool]:
    """The process on one core while the block runs, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield False
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield True
    finally:
        os.sched_setaffinity(0, allowed)
