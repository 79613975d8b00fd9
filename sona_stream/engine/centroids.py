"""Centroids: unit rows, the products of every pair of them, and the arithmetic of moving, merging and removing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..kernels import Kernels
from .arrays import F32

__all__ = ["WARD_LIMIT", "Centroids"]

WARD_LIMIT = 256
"""The pairs of more centroids than this are left to the background cycle."""

F64 = NDArray[np.float64]


class Centroids:
    """At most `limit` unit rows (m, e) float32.

    Their products follow every change by linear algebra on what is known, in float64: a query costs one pass over
    the centroids, whatever becomes of it.
    """

    def __init__(self, dim: int, limit: int, kernels: Kernels) -> None:
        self.dim, self.limit = dim, limit
        self._kernels = kernels
        room = min(limit, 16)
        self._rows = np.zeros((room, dim), np.float32)
        self._gram: F64 = np.full((room, room), -1.0)
        """products; the diagonal stays -1, so that a row's greatest is another centroid"""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> F32:
        """(m, e) unit rows; a view"""
        return self._rows[: self._count]

    def closest(self, u: F32) -> tuple[int, F64]:
        """Unit vector (e,) -> the nearest, and the cosines (m,) to all; m must not be 0."""
        cosines = np.empty(self._count)
        return self._kernels.closest(self._rows[: self._count], u, cosines), cosines

    def append(self, u: F32, cosines: F64 | None = None) -> int:
        """One more unit row; `cosines` (m,) to those there are, where they are known. -> its place"""
        i = self._count
        if i == len(self._rows):
            self._grow()
        if i < len(self._gram):
            if cosines is None and i:
                _, cosines = self.closest(u)
            if cosines is not None:
                self._gram[i, :i] = self._gram[:i, i] = cosines
        self._rows[i] = u
        self._count += 1
        return i

    def join(self, i: int, share: float, u: F32, cosines: F64) -> float:
        """Row i becomes (share row_i + u) / its norm; cosines (m,): of u to all. -> the norm (0: nothing moved)"""
        return self._kernels.blend(self._rows, i, share, u, 1.0, self._gram, cosines)

    def merge(self, i: int, j: int, a: float, b: float) -> float:
        """Row i becomes (a row_i + b row_j) / its norm, row j goes, the last takes its place. -> the norm"""
        products = self._gram[j, : self._count]
        products[j] = 1.0
        norm = self._kernels.blend(self._rows, i, a, self._rows[j], b, self._gram, products)
        last = self._count - 1
        self._rows[j] = self._rows[last]
        self._gram[j] = self._gram[last]
        self._gram[:, j] = self._gram[:, last]
        self._gram[j, j] = -1.0
        self._gram[last, last] = -1.0
        self._count = last
        return norm

    def cheapest_merge(self, weights: F64, lengths: F64, cosines: F64, unit: float) -> tuple[int, int] | None:
        """See `Kernels.cheapest_merge`; None when joining costs less, or there are too many pairs."""
        if not 1 < self._count <= min(WARD_LIMIT, len(self._gram)):
            return None
        i, j = self._kernels.cheapest_merge(self._gram, weights, lengths, cosines, unit)
        return None if i < 0 else (i, j)

    def twin(self, i: int) -> tuple[int, float]:
        """The other centroid nearest to row i, and their cosine; below -1 when none is known."""
        if not 1 < self._count <= len(self._gram):
            return i, -2.0
        row = self._gram[i, : self._count]
        j = int(row.argmax())
        return j, float(row[j])

    def _grow(self) -> None:
        m = len(self._rows)
        room = min(self.limit, 2 * m)
        self._rows = np.concatenate([self._rows, np.zeros((room - m, self.dim), np.float32)])
        if room <= WARD_LIMIT:
            self._gram = np.pad(self._gram, (0, room - m), constant_values=-1.0)
