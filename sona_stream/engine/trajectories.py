"""Trajectories: open ones by id, and the buffer of finished ones that waits for the background cycle.

Vectors are int8 with a scale (see `pool`), everything else is in structured rings: a finished trajectory of one
step costs about 2 d + 90 bytes, 6.2 KB at d = 3072.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..config.engine import DropPolicy
from ..kernels import Kernels
from .pool import VectorPool
from .ring import RecordRing

__all__ = [
    "MAX_STEPS",
    "STEP_ROW",
    "TRAJECTORY_ROW",
    "OpenTrajectory",
    "Outcome",
    "Step",
    "StepKind",
    "TrajectoryBuffer",
    "next_trajectory_id",
]

MAX_STEPS = 4096
StepKind = Literal[0, 1, 2]
"""0: advantage on the activations, 1: a target was given, 2: a gradient was given"""

TRAJECTORY_ROW = np.dtype(
    [
        ("query", "i4"),
        ("quality", "f4"),
        ("reward", "f4"),
        ("steps", "i4"),
        ("pattern", "i8"),
        ("vote", "i1"),
        ("vote_weight", "f4"),
        ("route", "i4"),
        ("cost", "f4"),
        ("latency", "f4"),
    ]
)
STEP_ROW = np.dtype([("slot", "i4"), ("extra", "i4"), ("advantage", "f4"), ("kind", "i1"), ("layer", "i2")])

# One counter for the process: an id of one engine is unknown to every other.
_ids = itertools.count(1)


def next_trajectory_id() -> int:
    """An id that no other trajectory of this process has."""
    return next(_ids)


@dataclasses.dataclass(slots=True)
class Step:
    """One step of an open trajectory; slots are in the pool of open vectors."""

    slot: int
    extra: int
    """slot of the target or gradient, -1 without"""
    kind: StepKind
    reward: float
    weight: float
    """in [0.5, 1]: how concentrated the attention was"""
    layer: int
    """-1: all layers"""


@dataclasses.dataclass(slots=True)
class OpenTrajectory:
    """What is known before the end."""

    query: int
    """slot in the pool of queries"""
    started: float
    """monotonic seconds"""
    steps: list[Step]
    route: str | None = None
    vote: int = -1
    vote_weight: float = 1.0
    cost: float = float("nan")
    latency: float = float("nan")


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What the pattern bank is told about one finished trajectory. NaN: not known."""

    quality: float
    reward: float = float("nan")
    """mean reward of the steps"""
    vote: int = -1
    """index into PATTERN_TYPES"""
    vote_weight: float = 1.0
    route: str | None = None
    cost: float = float("nan")
    latency: float = float("nan")


class TrajectoryBuffer:
    """Finished trajectories, newest `capacity` of them (or the first, by `drop_policy`). Guarded by the engine."""

    def __init__(self, capacity: int, drop_policy: DropPolicy, query_dim: int, dim: int, kernels: Kernels) -> None:
        self.capacity = capacity
        self.drop_policy = drop_policy
        self.queries = VectorPool(query_dim, kernels)
        self.vectors = VectorPool(dim, kernels)
        self.trajectories = RecordRing(TRAJECTORY_ROW)
        self.steps = RecordRing(STEP_ROW)
        self.routes: list[str] = []

    def __len__(self) -> int:
        return len(self.trajectories)

    def append(
        self,
        opened: OpenTrajectory,
        outcome: Outcome,
        advantages: NDArray[np.float32],
        pattern: int,
        queries: VectorPool,
        vectors: VectorPool,
    ) -> int:
        """Copy a finished trajectory in from the open pools; -> how many trajectories were dropped (0 or 1)."""
        steps = [
            (step.slot, step.extra, advantage, step.kind, step.layer)
            for step, advantage in zip(opened.steps, advantages, strict=True)
        ]
        o = outcome
        head = (o.quality, o.reward, len(steps), pattern, o.vote, o.vote_weight)
        tail = (self._route_index(o.route), o.cost, o.latency)
        return self._append(opened.query, head, tail, steps, queries, vectors)

    def extend(self, other: TrajectoryBuffer) -> int:
        """Append every trajectory of another buffer; -> how many were dropped."""
        dropped, at = 0, other.steps.first
        for record in other.trajectories.slice(other.trajectories.first, other.trajectories.end):
            query, *head, route, cost, latency = record.item()
            steps = [step.item() for step in other.steps.slice(at, at + record["steps"])]
            at += len(steps)
            tail = (self._route_index(other.route_name(route)), cost, latency)
            dropped += self._append(query, tuple(head), tail, steps, other.queries, other.vectors)
        return dropped

    def _append(
        self,
        query: int,
        head: tuple[Any, ...],
        tail: tuple[Any, ...],
        steps: list[tuple[Any, ...]],
        queries: VectorPool,
        vectors: VectorPool,
    ) -> int:
        dropped = 0
        if len(self) >= self.capacity:
            if self.drop_policy == "newest":
                return 1
            self._drop_oldest()
            dropped = 1
        for slot, extra, *rest in steps:
            kept = self.vectors.put_codes(*vectors.codes(slot))
            kept_extra = self.vectors.put_codes(*vectors.codes(extra)) if extra >= 0 else -1
            self.steps.append((kept, kept_extra, *rest))
        self.trajectories.append((self.queries.put_codes(*queries.codes(query)), *head, *tail))
        return dropped

    def route_name(self, index: int) -> str | None:
        """The route behind a record's number; -1 is none."""
        return self.routes[index] if index >= 0 else None

    def _route_index(self, route: str | None) -> int:
        if route is None:
            return -1
        if route not in self.routes:
            self.routes.append(route)
        return self.routes.index(route)

    def _drop_oldest(self) -> None:
        record = self.trajectories.pop()
        self.queries.free(int(record["query"][0]))
        for _ in range(int(record["steps"][0])):
            step = self.steps.pop()
            self.vectors.free(int(step["slot"][0]))
            if step["extra"][0] >= 0:
                self.vectors.free(int(step["extra"][0]))
