"""Recording: open trajectories, their end, and what each end teaches at once. Guarded by the engine's lock."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np

from ..config.engine import SonaConfig
from ..events import PATTERN_TYPES
from ..kernels import Kernels
from .arrays import F32, in_range, number, require_finite
from .bank import PatternBank, Recorded
from .base_lora import BaseLora
from .credit import Credit
from .ewc import TaskMemory
from .instant import InstantLoop, Lesson, lesson_of
from .micro import MicroLora
from .pool import VectorPool
from .trajectories import MAX_STEPS, OpenTrajectory, Outcome, Step, StepKind, TrajectoryBuffer, next_trajectory_id

__all__ = ["CONTEXT_KEYS", "Recorder"]

CONTEXT_KEYS = ("pattern_type", "pattern_type_weight", "latency_s", "cost")


class Recorder:
    """Open trajectories by id, the buffer of finished ones, and the counters of both."""

    def __init__(
        self,
        config: SonaConfig,
        kernels: Kernels,
        bank: PatternBank,
        micro: MicroLora,
        tasks: TaskMemory,
        base: BaseLora,
    ) -> None:
        self._config = config
        self._kernels = kernels
        self.micro = micro
        self._tasks = tasks
        self._base = base
        self._queries = VectorPool(config.embedding_dim, kernels)
        self._vectors = VectorPool(config.hidden_dim, kernels)
        self._open: dict[int, OpenTrajectory] = {}
        self.bank = bank
        self.credit = Credit(config.quality_threshold)
        self.instant = InstantLoop(config, micro)
        self.buffer = self.new_buffer()
        self.recorded = 0
        self.dropped = 0
        self.expired = 0

    @property
    def open_count(self) -> int:
        """Trajectories begun and not yet ended, aborted or expired."""
        return len(self._open)

    def new_buffer(self, capacity: int | None = None) -> TrajectoryBuffer:
        """An empty buffer of this engine's shape."""
        c = self._config
        return TrajectoryBuffer(
            capacity or c.trajectory_capacity, c.drop_policy, c.embedding_dim, c.hidden_dim, self._kernels
        )

    def take_bank(self, bank: PatternBank) -> None:
        """Put the cycle's bank in place of the present one, keeping what `find_patterns` counted meanwhile."""
        bank.take_touches(self.bank)
        self.bank = bank

    def give_back(self, buffer: TrajectoryBuffer) -> int:
        """A failed cycle's trajectories come first again, the newer ones after them; -> how many did not fit."""
        newer, self.buffer = self.buffer, buffer
        return buffer.extend(newer)

    def begin(self, query: F32) -> int:
        """(e,) -> id"""
        self.expire()
        slot = self._keep(self._queries, query, "query")
        tid = next_trajectory_id()
        self._open[tid] = OpenTrajectory(slot, time.monotonic(), [])
        return tid

    def add_step(
        self,
        tid: int,
        activations: F32,
        extra: F32 | None,
        kind: StepKind,
        reward: float,
        weight: float,
        layer: int,
    ) -> None:
        """Activations (d,); extra (d,): the target (kind 1) or gradient (kind 2)."""
        opened = self.opened(tid)
        if len(opened.steps) >= MAX_STEPS:
            raise ValueError(f"trajectory {tid} already has {MAX_STEPS} steps, the most one may have")
        slot = self._keep(self._vectors, activations, "activations")
        extra_slot = -1
        if extra is not None:
            try:
                extra_slot = self._keep(self._vectors, extra, "target" if kind == 1 else "grad")
            except ValueError:
                self._vectors.free(slot)
                raise
        opened.steps.append(Step(slot, extra_slot, kind, reward, weight, layer))

    def add_context(self, tid: int, context: Mapping[str, object]) -> None:
        """Keys of CONTEXT_KEYS; all are checked before any is kept."""
        opened = self.opened(tid)
        unknown = sorted(set(context) - set(CONTEXT_KEYS))
        if unknown:
            raise ValueError(f"unknown context key {unknown[0]!r}; known: {', '.join(CONTEXT_KEYS)}")
        vote, weight = opened.vote, opened.vote_weight
        if "pattern_type" in context:
            if context["pattern_type"] not in PATTERN_TYPES:
                raise ValueError(
                    f"pattern_type must be one of {', '.join(PATTERN_TYPES)}, not {context['pattern_type']!r}"
                )
            vote = PATTERN_TYPES.index(context["pattern_type"])
        if "pattern_type_weight" in context:
            weight = in_range(context["pattern_type_weight"], "pattern_type_weight", 0.0, 1e6)
        latency, cost = opened.latency, opened.cost
        if "latency_s" in context:
            latency = in_range(context["latency_s"], "latency_s", 0.0, math.inf)
        if "cost" in context:
            cost = number(context["cost"], "cost")
        opened.vote, opened.vote_weight, opened.latency, opened.cost = vote, weight, latency, cost

    def end(self, tid: int, quality: float, *, learn: bool) -> None:
        """Judge, learn, and move into the buffer."""
        opened = self.opened(tid)
        rewards = [step.reward for step in opened.steps if step.kind == 0]
        outcome = Outcome(
            quality=quality,
            reward=math.fsum(rewards) / len(rewards) if rewards else math.nan,
            vote=opened.vote,
            vote_weight=opened.vote_weight,
            route=opened.route,
            cost=opened.cost,
            latency=opened.latency,
        )
        query = self._queries.get_one(opened.query)
        known = self._note_pattern(query, outcome) if learn else Recorded(-1, 0.0, 0.0, 0.0, 0.0)
        advantages = self.credit.advantages(opened.steps, quality, known)
        if learn and opened.steps:
            lesson = self._lesson(query, opened, advantages)
            if lesson is not None:
                self.instant.learn(lesson)
                self._tasks.pull(self.micro, lesson.X[0])
                self._tasks.observe(lesson.X[0], self.micro.served, self._base.groups)
        self.recorded += 1
        self.dropped += self.buffer.append(opened, outcome, advantages, known.serial, self._queries, self._vectors)
        self.abort(tid)

    def abort(self, tid: int) -> None:
        """Forget an open trajectory."""
        opened = self.opened(tid)
        del self._open[tid]
        self._queries.free(opened.query)
        for step in opened.steps:
            self._vectors.free(step.slot)
            if step.extra >= 0:
                self._vectors.free(step.extra)

    def expire(self) -> None:
        """Forget open trajectories older than the limit; the dict is in order of age."""
        limit = time.monotonic() - self._config.trajectory_ttl_s
        while self._open:
            tid, opened = next(iter(self._open.items()))
            if opened.started > limit:
                return
            self.abort(tid)
            self.expired += 1

    def opened(self, tid: int) -> OpenTrajectory:
        """The open trajectory of this id, or ValueError."""
        try:
            return self._open[tid]
        except (KeyError, TypeError):
            raise ValueError(
                f"trajectory id {tid!r} is not open in this engine (never begun, ended, aborted, or expired "
                f"after {self._config.trajectory_ttl_s:g} s)"
            ) from None

    def _keep(self, pool: VectorPool, x: F32, name: str) -> int:
        slot, square = pool.put(x)
        if not math.isfinite(square):
            try:
                require_finite(x, name)
            except ValueError:
                pool.free(slot)
                raise
        return slot

    def _note_pattern(self, query: F32, outcome: Outcome) -> Recorded:
        norm = math.sqrt(float(query @ query))
        if norm == 0.0:
            return Recorded(-1, 0.0, 0.0, 0.0, 0.0)
        return self.bank.record(query / np.float32(norm), outcome)

    def _lesson(self, query: F32, opened: OpenTrajectory, advantages: F32) -> Lesson | None:
        steps = opened.steps
        activations = self._vectors.get([step.slot for step in steps])
        if any(step.extra >= 0 for step in steps):
            extras = self._vectors.get([step.extra if step.extra >= 0 else step.slot for step in steps])
        else:
            extras = activations
        kinds = [step.kind for step in steps]
        served = self.micro.served
        return lesson_of(query, activations, extras, kinds, advantages, served, self._config, self._kernels)
