"""Vectors at rest: int8 codes with one scale each, in slabs that are given back to the system when empty."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import Kernels
from .arrays import F32

__all__ = ["VectorPool"]

_SLAB_BYTES = 1 << 19


class VectorPool:
    """Slots of ``dim`` int8 codes and a scale; a slot costs dim + 8 bytes.

    Slabs are anonymous maps: pages that were never written cost nothing, and a slab whose last slot is freed goes
    back to the system. Not thread-safe: the engine's lock guards it.
    """

    def __init__(self, dim: int, kernels: Kernels) -> None:
        self.dim = dim
        self._kernels = kernels
        self._rows = max(8, _SLAB_BYTES // dim)
        self._slabs: list[NDArray[np.int8] | None] = []
        self._live: list[int] = []
        self._scales = array("f")
        self._free = array("i")
        self._spare: int | None = None

    def __len__(self) -> int:
        return sum(self._live)

    def put(self, x: F32) -> tuple[int, float]:
        """(dim,) -> (slot, x.x). When x.x is not finite the caller must check x, and free the slot if x is bad."""
        slot = self._take()
        scale, square = self._kernels.quantize_row(x, self._row(slot))
        self._scales[slot] = scale
        return slot, square

    def put_codes(self, codes: NDArray[np.int8], scale: float) -> int:
        """Int8 (dim,) with its scale -> slot"""
        slot = self._take()
        self._row(slot)[:] = codes
        self._scales[slot] = scale
        return slot

    def codes(self, slot: int) -> tuple[NDArray[np.int8], float]:
        """-> int8 (dim,) (a view: copy it before the slot is freed) and its scale"""
        return self._row(slot), self._scales[slot]

    def get(self, slots: Sequence[int] | NDArray[np.integer[Any]]) -> F32:
        """-> (len(slots), dim) float32"""
        out = np.empty((len(slots), self.dim), np.float32)
        for i, slot in enumerate(slots):
            self._kernels.dequantize_row(self._row(int(slot)), self._scales[int(slot)], out[i])
        return out

    def get_one(self, slot: int) -> F32:
        """-> (dim,) float32"""
        out = np.empty(self.dim, np.float32)
        self._kernels.dequantize_row(self._row(slot), self._scales[slot], out)
        return out

    def take_out(self, slots: Sequence[int] | NDArray[np.integer[Any]]) -> tuple[NDArray[np.int8], F32]:
        """-> copies: int8 (len(slots), dim), scales (len(slots),)"""
        codes = np.empty((len(slots), self.dim), np.int8)
        scales = np.empty(len(slots), np.float32)
        for i, slot in enumerate(slots):
            codes[i] = self._row(int(slot))
            scales[i] = self._scales[int(slot)]
        return codes, scales

    def free(self, slot: int) -> None:
        """Let the slot be used again; an empty slab is unmapped, except one that is kept for the next vector."""
        slab = slot // self._rows
        self._live[slab] -= 1
        self._free.append(slot)
        if self._live[slab]:
            return
        if self._spare not in (None, slab):
            self._slabs[slab] = None
            return
        self._spare = slab

    def _take(self) -> int:
        slot = self._free.pop() if self._free else len(self._scales)
        slab = slot // self._rows
        if slab == len(self._slabs):
            self._slabs.append(None)
            self._live.append(0)
        if self._slabs[slab] is None:
            pages = mmap.mmap(-1, self._rows * self.dim)
            self._slabs[slab] = np.frombuffer(pages, dtype=np.int8).reshape(self._rows, self.dim)
        if slot == len(self._scales):
            self._scales.append(0.0)
        self._live[slab] += 1
        if slab == self._spare:
            self._spare = None
        return slot

    def _row(self, slot: int) -> NDArray[np.int8]:
        slab = self._slabs[slot // self._rows]
        assert slab is not None  # a live slot keeps its slab
        return np.asarray(slab[slot % self._rows])
