"""Re-gathering patterns in the background: spherical k-means over the cycle's queries and what older ones left.

The online bank never looks back; this does. Its points are the queries of the cycle and, for each pattern, one
weighted point for everything older (see `remainders`), so that every statistic stays a sum. A full bank is also
started afresh a few times (k-means++, Arthur & Vassilvitskii 2007) on a sample, since what came first may hold
places that later clusters need. The number of patterns stays.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ..kernels import Kernels
from .arrays import F32
from .bank import PatternBank
from .remainders import BankCopy, assemble, remainders
from .trajectories import TrajectoryBuffer

__all__ = ["refined"]

_CHUNK_NUMBERS = 1 << 17
"""Numbers in one chunk of queries: half a megabyte, about a millisecond of work outside the GIL."""
_SAMPLE = 2048
_ITERATIONS = 8
_CHEAP = 2e8
"""Multiplications of one pass over the sample below which eight fresh starts are tried instead of two."""


@dataclasses.dataclass(slots=True)
class _Points:
    """Unit vectors: the cycle's queries by slot, and the weighted remainders of older ones."""

    buffer: TrajectoryBuffer
    slots: NDArray[np.int32]
    rest: F32
    rest_weight: F32

    @property
    def step(self) -> int:
        """Queries in one chunk."""
        return max(16, _CHUNK_NUMBERS // self.buffer.queries.dim)

    def chunk(self, at: int) -> F32:
        """Queries at .. at + step, as unit vectors."""
        return _unit(self.buffer.queries.get(self.slots[at : at + self.step]))

    def sample(self, random: np.random.Generator) -> _Sample:
        """At most _SAMPLE queries, standing for all, and the remainders; in parts of one chunk each."""
        n = len(self.slots)
        chosen = np.sort(random.choice(n, min(n, _SAMPLE), replace=False))
        parts = [
            _unit(self.buffer.queries.get(self.slots[chosen[at : at + self.step]]))
            for at in range(0, len(chosen), self.step)
        ]
        weights = [np.full(len(part), n / len(chosen), np.float32) for part in parts]
        return _Sample([*parts, self.rest], [*weights, self.rest_weight])


@dataclasses.dataclass(slots=True)
class _Sample:
    """Points (m, e) and weights (m,), in parts: no operation holds the GIL for more than a few milliseconds."""

    parts: list[F32]
    weights: list[F32]

    def point(self, at: int) -> F32:
        for part in self.parts:
            if at < len(part):
                return np.asarray(part[at])
            at -= len(part)
        raise IndexError(at)

    def gaps(self, centre: F32) -> F32:
        return np.concatenate([np.maximum(1.0 - part @ centre, 0.0) for part in self.parts])


def refined(
    copy: BankCopy, like: PatternBank, buffer: TrajectoryBuffer, kernels: Kernels, seed: int
) -> tuple[PatternBank, NDArray[np.int64]]:
    """-> a new bank shaped as `like`, and the serial of each buffered trajectory (-1: zero query)."""
    records = buffer.trajectories.slice(buffer.trajectories.first, buffer.trajectories.end)
    online = np.array([copy.resolve(int(serial)) for serial in records["pattern"]], dtype=np.int64)
    placed = np.flatnonzero(online >= 0)
    serials = np.full(len(records), -1, np.int64)
    left = remainders(copy, records[placed], online[placed], buffer)
    weight = np.asarray(left.rows["weight"] / copy.unit, dtype=np.float32)
    points = _Points(buffer, records["query"][placed], copy.centroids, weight)
    centroids = copy.centroids
    if len(placed):
        centroids = _start(points, copy, kernels, np.random.default_rng(seed))
        centroids = _lloyd(points, centroids, kernels)
    labels, cosines = _assign(points, centroids)
    bank = PatternBank(like.dim, like.limit, like.open_similarity, like.half_life, kernels)
    serials[placed] = assemble(
        bank, copy, left, records[placed], online[placed], centroids, labels, cosines, buffer
    )
    return bank, serials


def _unit(X: F32) -> F32:
    norms = np.sqrt(np.einsum("ij,ij->i", X, X))[:, None]
    return np.asarray(X / np.maximum(norms, 1e-30), dtype=np.float32)


def _start(points: _Points, copy: BankCopy, kernels: Kernels, random: np.random.Generator) -> F32:
    """Where full passes begin: the bank's own centroids, or a better fresh start on a sample of a full bank."""
    k = len(copy.centroids)
    if not copy.full or k < 2:
        return copy.centroids
    sample = points.sample(random)
    tries = 8 if sum(part.size for part in sample.parts) * k <= _CHEAP else 2
    starts = [copy.centroids, *(_plus_plus(sample, k, random) for _ in range(tries))]
    best, best_quality = copy.centroids, -np.inf
    for start in starts:
        centroids, quality = start, -np.inf
        for _ in range(_ITERATIONS):
            centroids, new_quality = _pass(sample, centroids, kernels)
            if new_quality <= quality * (1 + 1e-5):
                break
            quality = new_quality
        if quality > best_quality:
            best, best_quality = centroids, quality
    return best


def _plus_plus(sample: _Sample, k: int, random: np.random.Generator) -> F32:
    weights = np.concatenate(sample.weights).astype(np.float64)
    chosen = [sample.point(int(random.choice(len(weights), p=weights / weights.sum())))]
    gap = sample.gaps(chosen[0])
    while len(chosen) < k:
        chance = gap * weights
        total = chance.sum()
        at = random.choice(len(weights), p=chance / total) if total > 0 else random.integers(len(weights))
        chosen.append(sample.point(int(at)))
        gap = np.minimum(gap, sample.gaps(chosen[-1]))
    return np.stack(chosen)


def _pass(sample: _Sample, centroids: F32, kernels: Kernels) -> tuple[F32, float]:
    sums = np.zeros_like(centroids)
    counts = np.zeros(len(centroids), np.float32)
    quality = 0.0
    for U, weight in zip(sample.parts, sample.weights, strict=True):
        quality += kernels.kmeans_step(U, weight, U @ centroids.T, sums, counts)
    return np.where(counts[:, None] > 0, _unit(sums), centroids), quality


def _lloyd(points: _Points, centroids: F32, kernels: Kernels) -> F32:
    """Full passes in chunks: each is a few milliseconds outside the GIL."""
    quality = -np.inf
    for _ in range(_ITERATIONS):
        sums = np.zeros_like(centroids)
        counts = np.zeros(len(centroids), np.float32)
        new_quality = 0.0
        for at in range(0, len(points.slots), points.step):
            U = points.chunk(at)
            new_quality += kernels.kmeans_step(U, np.ones(len(U), np.float32), U @ centroids.T, sums, counts)
        new_quality += kernels.kmeans_step(points.rest, points.rest_weight, points.rest @ centroids.T, sums, counts)
        centroids = np.where(counts[:, None] > 0, _unit(sums), centroids)
        if new_quality <= quality * (1 + 1e-4):
            break
        quality = new_quality
    return centroids


def _assign(points: _Points, centroids: F32) -> tuple[NDArray[np.int64], F32]:
    """-> label and cosine of every query, then of every remainder"""
    labels, cosines = [], []
    for at in range(0, len(points.slots) + points.step, points.step):
        U = points.chunk(at) if at < len(points.slots) else points.rest
        scores = U @ centroids.T
        labels.append(scores.argmax(axis=1) if scores.size else np.zeros(len(U), np.int64))
        cosines.append(scores.max(axis=1) if scores.size else np.zeros(len(U), np.float32))
        if at >= len(points.slots):
            break
    return np.concatenate(labels), np.concatenate(cosines)
