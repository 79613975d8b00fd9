"""What the pattern bank does with one query, compiled. Documentation of each: `kernels.contract`."""

from __future__ import annotations

import math

import numpy as np
from numba import types

from ..contract import F32, F64
from .jit import BLOCK, LINE, LINE64, MATRIX, kernel

__all__ = ["attention_weight", "blend", "cheapest_merge", "closest"]

_COSINES = types.Array(types.float64, 1, "C")
_GRAM = types.Array(types.float64, 2, "C")
_COLUMN = types.Array(types.float64, 1, "A", readonly=True)


@kernel(types.int64(BLOCK, LINE, _COSINES), nogil=False)
def closest(C: F32, q: F32, out: F64, /) -> int:
    """(m, d), (d,) into (m,)"""
    best = 0
    for i in range(C.shape[0]):
        total = np.float32(0.0)
        for j in range(C.shape[1]):
            total += C[i, j] * q[j]
        out[i] = total
        if out[i] > out[best]:
            best = i
    return best


@kernel(types.float64(MATRIX, types.int64, types.float64, LINE, types.float64, _GRAM, LINE64), nogil=False)
def blend(C: F32, i: int, a: float, v: F32, b: float, gram: F64, products: F64, /) -> float:
    """Row i of (room, d), (d,), (g, g), (m,)"""
    d, m = C.shape[1], products.shape[0]
    of_row, of_v = np.float32(a), np.float32(b)
    square = np.float32(0.0)
    for j in range(d):
        moved = of_row * C[i, j] + of_v * v[j]
        square += moved * moved
    norm = math.sqrt(square)
    if norm == 0:
        return 0.0
    inverse = np.float32(1.0 / norm)
    for j in range(d):
        C[i, j] = (of_row * C[i, j] + of_v * v[j]) * inverse
    if m > gram.shape[0]:
        return norm
    for k in range(m):
        if k != i:
            gram[i, k] = (a * gram[i, k] + b * products[k]) / norm
            gram[k, i] = gram[i, k]
    return norm


@kernel(types.UniTuple(types.int64, 2)(_GRAM, _COLUMN, _COLUMN, LINE64, types.float64), nogil=False)
def cheapest_merge(gram: F64, weights: F64, lengths: F64, cosines: F64, unit: float, /) -> tuple[int, int]:
    """(g, g), (m,) x 3"""
    m = cosines.shape[0]
    weight, length, costs = np.empty(m), np.empty(m), np.empty(m)
    least = np.inf
    for i in range(m):
        weight[i], length[i] = weights[i] / unit, lengths[i]
        join = weight[i] / (weight[i] + 1.0) * (1.0 + length[i] ** 2 - 2.0 * length[i] * cosines[i])
        least = min(least, join)
    found = (-1, -1)
    for i in range(m):
        w, s = weight[i], length[i]
        for j in range(i + 1, m):
            costs[j] = w * weight[j] / (w + weight[j]) * (s * s + length[j] ** 2 - 2.0 * s * length[j] * gram[i, j])
        for j in range(i + 1, m):
            if costs[j] < least:
                least = costs[j]
                found = (i, j)
    return found


@kernel(types.float64(LINE64), nogil=False)
def attention_weight(weights: F64, /) -> float:
    """(n,) -> in [0.5, 1], or NaN"""
    total = 0.0
    for j in range(weights.shape[0]):
        total += abs(weights[j])
    if not math.isfinite(total):
        return np.nan
    if weights.shape[0] < 2 or total <= 0:
        return 1.0
    entropy = 0.0
    for j in range(weights.shape[0]):
        share = abs(weights[j]) / total
        if share > 0:
            entropy += share * math.log(share)
    return 1.0 + entropy / (2.0 * math.log(weights.shape[0]))
