"""What one feedback costs the learner itself: everything but the host's computing.

`learner_ms`: milliseconds from a rating that the store has committed to its published version, less those in the
host's calls, which are beside it. Much of it is waiting for the disk: what is published is durable. The learner
with the guide's research profile, on answers of 64 tokens with the real model's head, in a real store; no replay.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from report import Report

from sona_stream.config.settings import LearningSettings, SonaSettings
from sona_stream.engine.learner import Learner
from sona_stream.events import Feedback, RouteDecision, Trajectory
from sona_stream.lora import F32, Capture, Curvature, Evaluation, LoraGradient, LoraWeights, TokenSignal
from sona_stream.store import create_store
from sona_stream_adapters.local.encode import encode

from .arms import RESEARCH
from .head_host import HeadHost
from .plan import Run
from .segments import FrozenModel, as_capture

__all__ = ["add_rows"]

T = TypeVar("T")
MODEL, TENANT, TOKENS = "m", "t", 64
WARM = 10
"""feedbacks before the measured ones"""


class TimedHost:
    """Holds answers, and counts the seconds in its calls."""

    def __init__(self, frozen: FrozenModel, answers: Sequence[Capture]) -> None:
        self._model, self._answers = frozen.model, {one.request_id: one for one in answers}
        self._head = HeadHost(frozen.head(), self._model.fingerprint)
        self.hidden_dim, self.fingerprint = self._head.hidden_dim, self._model.fingerprint
        self.seconds = 0.0
        """in its calls"""

    async def capture(self, request_id: str) -> Capture:
        """As `HiddenStateHost`, and so are the others."""
        return self._answers[request_id]

    async def release(self, request_id: str) -> None:
        """Kept: there is room."""

    async def put_adapter(self, key: str, version: int, weights: LoraWeights) -> None:
        """Nobody is served here."""

    async def drop_adapter(self, key: str) -> None:
        """Nobody is served here."""

    async def encode(
        self,
        prompt_ids: Sequence[int] | NDArray[np.int32],
        answer: str | Sequence[int] | NDArray[np.int32],
        *,
        request_id: str = "",
        temperature: float = 1.0,
        adapter_key: str | None = None,
        weights: LoraWeights | None = None,
        hidden: bool = False,
    ) -> Capture:
        """Not timed: the text from elsewhere is read once a model, before the measured feedbacks."""
        prefill = encode(
            self._model,
            [int(token) for token in prompt_ids],
            answer if isinstance(answer, str) else [int(token) for token in answer],
            request_id=request_id,
            fingerprint=self.fingerprint,
            temperature=temperature,
            adapter_key=adapter_key,
            weights=weights,
            is_busy=lambda: False,
        )
        while True:
            try:
                next(prefill)
            except StopIteration as end:
                return cast("Capture", end.value)

    async def gradient(self, captures: Sequence[Capture], signal: TokenSignal) -> LoraGradient:
        """Timed."""
        return await self._timed(self._head.gradient(captures, signal))

    async def predicted_kl(self, captures: Sequence[Capture], old: LoraWeights, new: LoraWeights) -> float:
        """Timed."""
        return await self._timed(self._head.predicted_kl(captures, old, new))

    async def evaluate(self, captures: Sequence[Capture], weights: LoraWeights) -> Evaluation:
        """Timed."""
        return await self._timed(self._head.evaluate(captures, weights))

    async def curvature(self, captures: Sequence[Capture], elsewhere: F32 | None = None) -> Curvature:
        """Timed."""
        return await self._timed(self._head.curvature(captures, elsewhere))

    async def _timed(self, asked: Awaitable[T]) -> T:
        began = time.perf_counter()
        try:
            return await asked
        finally:
            self.seconds += time.perf_counter() - began


def add_rows(report: Report, run: Run) -> None:
    """`learner_ms`, with the host's milliseconds beside it."""
    torch.set_num_threads(1)
    told = run.kept("learner_cost", lambda: asyncio.run(_measure(20 if run.quick else 150)))
    torch.set_num_threads(run.threads)
    report.measured("learner_ms", told["own"], "ms", goal=5, compared={"host": float(np.median(told["host"]))})


async def _measure(count: int) -> dict[str, list[float]]:
    model = FrozenModel()
    answers = _answers(model, count + WARM)
    host = TimedHost(model, answers)
    told: dict[str, list[float]] = {"own": [], "host": []}
    with tempfile.TemporaryDirectory() as folder:
        settings = LearningSettings(replay_every=10**6)
        async with create_store(SonaSettings(), directory=Path(folder)) as store:
            rates: Any = SimpleNamespace(**RESEARCH)
            async with Learner({MODEL: host}, store, rates, settings) as learner:
                for number, answer in enumerate(answers):
                    route = RouteDecision(model=MODEL, reason="benchmark", pattern="p1", pattern_type="Factual")
                    store.submit_trajectory(
                        Trajectory(
                            request_id=answer.request_id,
                            tenant=TENANT,
                            key_id="k",
                            model=MODEL,
                            route=route,
                            started_at=time.time(),
                        )
                    )
                    given = Feedback(
                        id=f"f{number}",
                        request_id=answer.request_id,
                        tenant=TENANT,
                        key_id="k",
                        kind="rating",
                        quality=float(number % 2),
                        created_at=time.time(),
                    )
                    committed = await store.commit_feedback(given)
                    host.seconds, began = 0.0, time.perf_counter()
                    outcome = await learner.learn(committed, wait=True)
                    took = time.perf_counter() - began
                    if number >= WARM:
                        told["own"].append(1e3 * (took - host.seconds))
                        told["host"].append(1e3 * host.seconds)
                    if outcome.status not in ("published", "gated", "accepted"):
                        raise RuntimeError(f"a rating was {outcome.status}: {outcome.reason}")
    return told


def _answers(model: FrozenModel, count: int) -> list[Capture]:
    """Pieces of the standard library's text as if they had been answers."""
    pieces = []
    for segment in model.segments("stdlib", Path(), -(-count // 4)):
        for at in range(0, len(segment), TOKENS):
            name = f"{segment.request_id}+{at}"
            part = slice(at, at + TOKENS)
            pieces.append(as_capture(name, segment.fingerprint, segment.hidden[part], segment.token_ids[part]))
    return pieces[:count]
