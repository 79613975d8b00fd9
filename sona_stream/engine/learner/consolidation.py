"""Consolidation: what the micro pair learned moves into the base pair, and the micro pair starts anew.

The sum of both pairs is a (d, d) map M of rank q. Of all maps of rank R the one kept changes the adapter's output
least on the states that occur, min E|(M - M') h|^2: the truncated singular value decomposition of M C^(1/2),
C = E[h h^T], mapped back by C^(-1/2) (Eckart & Young 1936, in the metric of C). A plain decomposition of M would
cut the constant direction first, for the row that makes it is short where the mean state is long.

Nothing of size (d, d) is formed: C is kept as its largest eigenpairs and one value for all other directions
(`Spectrum`; 64 directions of a model with d = 4096 are 1 MB where C itself is 64 MB), and both factors go through
QR decompositions, so that the decomposition is of a (q, q) matrix.

The rows of the new A give numbers of mean square 1 and uncorrelated on the states that occur. Where the rank has
room they go on with the states' own principal directions, B zero there: what a later step of the base pair can use.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ...lora import F32, LoraWeights, LowRank, Spectrum

__all__ = ["Fold", "empty_base", "fold", "merged"]

F64 = NDArray[np.float64]

_NOTHING = 1e-12
_FLOOR = 1e-6
"""Of C's largest eigenvalue: directions in which the states hardly move."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """The new base pair, and what the cut to its rank cost: E|dM h|^2 / E|M h|^2 (0: nothing was cut)."""

    base: LowRank
    error: float
    rank: int
    """directions of the base pair in use"""


def fold(weights: LoraWeights, inputs: Spectrum, rank: int) -> Fold:
    """Both pairs of `weights` as one of rank `rank`, for states with E[h h^T] = `inputs`. In double precision."""
    A, B = _stacked(weights)
    metric = _Metric(inputs)
    left, R_left = np.linalg.qr(B)
    right, R_right = np.linalg.qr(metric.root(A).T)
    U, sizes, Vt = np.linalg.svd(R_left @ R_right.T)
    whole = float(np.sum(sizes**2))
    used = min(rank, int(np.sum(sizes > _NOTHING * max(float(sizes[0]), 1e-300))))
    rows = Vt[:used] @ right.T  # orthonormal
    lora_B = np.zeros((A.shape[1], rank))
    lora_B[:, :used] = (left @ U[:, :used]) * sizes[:used]
    base = LowRank(_f32(metric.back(_completed(rows, metric.directions(rank), rank))), _f32(lora_B))
    error = float(np.sum(sizes[used:] ** 2)) / whole if whole > 0 else 0.0
    return Fold(base, error, used)


def empty_base(inputs: Spectrum, rank: int) -> LowRank:
    """A base pair that changes nothing: B = 0, A the states' principal directions."""
    metric, d = _Metric(inputs), inputs.vectors.shape[1]
    rows = _completed(np.zeros((0, d)), metric.directions(rank), rank)
    return LowRank(_f32(metric.back(rows)), np.zeros((d, rank), dtype=np.float32))


def merged(one: Spectrum, other: Spectrum, share: float) -> Spectrum:
    """(1 - share) * one + share * other, with as many directions as the larger of both."""
    rest = (1.0 - share) * one.rest + share * other.rest
    parts = [
        np.sqrt(weight * np.maximum(part.values.astype(np.float64) - part.rest, 0.0))[:, None] * part.vectors
        for weight, part in ((1.0 - share, one), (share, other))
    ]
    _, sizes, vectors = np.linalg.svd(np.concatenate(parts), full_matrices=False)
    keep, d = max(len(one.values), len(other.values)), vectors.shape[1]
    keep = min(keep, len(sizes), d)
    dropped = float(np.sum(sizes[keep:] ** 2))
    spread = dropped / (d - keep) if d > keep else 0.0
    return Spectrum(_f32(vectors[:keep]), _f32(np.maximum(sizes[:keep] ** 2 + rest, 1e-12)), rest + spread)


class _Metric:
    """C^(1/2) and C^(-1/2) of a spectrum, applied to rows (n, d)."""

    def __init__(self, inputs: Spectrum) -> None:
        self._vectors = inputs.vectors.astype(np.float64)
        floor = _FLOOR * float(inputs.values[0])
        self._sizes = np.sqrt(np.maximum(inputs.values.astype(np.float64), floor))
        self._rest = float(np.sqrt(max(inputs.rest, floor)))

    def root(self, rows: F64) -> F64:
        """Rows times C^(1/2)."""
        return self._apply(rows, self._sizes, self._rest)

    def back(self, rows: F64) -> F64:
        """Rows times C^(-1/2)."""
        return self._apply(rows, 1.0 / self._sizes, 1.0 / self._rest)

    def directions(self, count: int) -> F64:
        """The leading eigenvectors, (at most count, d)."""
        return self._vectors[:count]

    def _apply(self, rows: F64, sizes: F64, rest: float) -> F64:
        along = rows @ self._vectors.T
        return rest * rows + (along * (sizes - rest)) @ self._vectors


def _completed(rows: F64, candidates: F64, rank: int) -> F64:
    """Orthonormal `rows` (n, d) and further ones up to `rank`: the candidates, then unit vectors, as far as they
    are new.
    """
    d = rows.shape[1] if rows.size else candidates.shape[1]
    found = list(rows)
    for candidate in (*candidates, *np.eye(min(d, rank + len(candidates)), d)):
        if len(found) == rank:
            break
        left = candidate.astype(np.float64)
        for _ in range(2):  # once more against rounding
            for row in found:
                left = left - (row @ left) * row
        size = float(np.linalg.norm(left))
        if size > 1e-3:
            found.append(left / size)
    missing = rank - len(found)  # more rows than dimensions: what cannot be new stays zero
    return np.stack([*found, *np.zeros((missing, d))])


def _stacked(weights: LoraWeights) -> tuple[F64, F64]:
    """(q, d) and (d, q), the scalings in B."""
    pairs = [weights.micro] if weights.base is None else [weights.micro, weights.base]
    A = np.concatenate([pair.lora_A for pair in pairs]).astype(np.float64)
    B = np.concatenate([pair.lora_B * pair.scaling for pair in pairs], axis=1).astype(np.float64)
    return A, B


def _f32(values: F64) -> F32:
    return np.ascontiguousarray(values, dtype=np.float32)
