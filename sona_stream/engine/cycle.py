"""One background cycle: what was buffered re-gathers the patterns and trains the base LoRA.

The cycle owns the buffer it was given; it reads the adapters' immutable snapshots and touches nothing shared.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config.engine import SonaConfig
from ..kernels import Kernels
from .arrays import F32
from .bank import PatternBank
from .base_lora import BaseLora, Evidence
from .ewc import Weights
from .instant import lesson_of
from .refine import refined
from .remainders import BankCopy
from .trajectories import TrajectoryBuffer

__all__ = ["CycleResult", "run_cycle"]

_MAX_GROUPS = 128
_SAMPLES = 64

Held = dict[int, list[tuple[F32, Weights]]]


@dataclasses.dataclass(slots=True)
class CycleResult:
    """What to publish."""

    trajectories: int
    bank: PatternBank
    base: dict[int, Weights]


def run_cycle(
    buffer: TrajectoryBuffer,
    copy: BankCopy,
    like: PatternBank,
    micro: Weights,
    base: BaseLora,
    held: Held,
    penalty: float,
    config: SonaConfig,
    kernels: Kernels,
) -> CycleResult:
    """The whole cycle, outside every lock; Python between kernels is in slices of one trajectory."""
    bank, serials = refined(copy, like, buffer, kernels, config.seed + base.updates)
    gathered = _gather(buffer, serials, micro, config, kernels)
    groups = dict(base.groups)
    for group in sorted({-1, *base.groups, *gathered}):
        evidence = gathered.get(group)
        if evidence is None:
            continue
        weights = base.consolidated(group, micro, evidence, held.get(group, held.get(-1, [])), penalty)
        if weights is not None:
            groups[group] = weights
    return CycleResult(len(buffer), bank, groups)


def _gather(
    buffer: TrajectoryBuffer, serials: NDArray[np.int64], micro: Weights, config: SonaConfig, kernels: Kernels
) -> dict[int, Evidence]:
    """Lessons of every buffered trajectory, summed by pattern: -1 what trains every layer, else one layer."""
    records = buffer.trajectories.slice(buffer.trajectories.first, buffer.trajectories.end)
    steps = buffer.steps.slice(buffer.steps.first, buffer.steps.end)
    names, sizes = np.unique(serials, return_counts=True)
    heaviest = names[np.argsort(-sizes, kind="stable")[: _MAX_GROUPS - 1]]
    column = {int(serial): i for i, serial in enumerate(heaviest)}
    stride = max(1, len(records) // _SAMPLES)
    out: dict[int, _Sums] = {}
    at = 0
    for number, record in enumerate(records):
        own = steps[at : at + int(record["steps"])]
        at += len(own)
        pattern = column.get(int(serials[number]), len(column))
        for layer in np.unique(own["layer"]).tolist():
            lesson = _lesson(buffer, record, own[own["layer"] == layer], micro, config, kernels)
            if lesson is None:
                continue
            sums = out.setdefault(layer, _Sums(len(column) + 1, config.hidden_dim))
            sums.add(pattern, *lesson, keep=number % stride == 0)
    return {layer: sums.evidence() for layer, sums in out.items()}


def _lesson(
    buffer: TrajectoryBuffer,
    record: Any,
    own: NDArray[Any],
    micro: Weights,
    config: SonaConfig,
    kernels: Kernels,
) -> tuple[F32, F32, float] | None:
    query = buffer.queries.get_one(int(record["query"]))
    activations = buffer.vectors.get(own["slot"])
    with_extra = np.where(own["extra"] >= 0, own["extra"], own["slot"])
    extras = buffer.vectors.get(with_extra) if np.any(own["kind"]) else activations
    lesson = lesson_of(query, activations, extras, own["kind"], own["advantage"], micro, config, kernels)
    return None if lesson is None else (lesson.X, lesson.push, lesson.strength)


class _Sums:
    """Running sums of `Evidence`."""

    def __init__(self, patterns: int, dim: int) -> None:
        self._inputs = np.zeros((patterns, dim), np.float32)
        self._pushes = np.zeros((patterns, dim), np.float32)
        self._counts = np.zeros(patterns, np.float32)
        self._samples: list[F32] = []

    def add(self, pattern: int, X: F32, push: F32, strength: float, *, keep: bool) -> None:
        """One lesson: every row counts as one input."""
        size = np.linalg.norm(push, axis=1)
        moving = size > 0
        if strength < 1e-3 or not moving.any():
            return
        self._inputs[pattern] += X[moving].sum(axis=0)
        self._pushes[pattern] += (push[moving] / size[moving, None]).sum(axis=0) * np.float32(min(1.0, strength))
        self._counts[pattern] += moving.sum()
        if keep or not self._samples:
            self._samples.append(X[0])

    def evidence(self) -> Evidence:
        """What was summed."""
        samples = np.stack(self._samples) if self._samples else self._inputs[:0]
        return Evidence(self._inputs, self._pushes, self._counts, samples)
