"""int8 codec, cosine search and one step of k-means, compiled. Documentation of each: `kernels.contract`."""

from __future__ import annotations

import numpy as np
from numba import types

from ..contract import F32, I8, I64
from .jit import BLOCK, CODES, LINE, MATRIX, ROW, kernel

__all__ = ["cosine_topk", "dequantize_row", "kmeans_step", "quantize_row", "scores"]

_CODES = types.Array(types.int8, 1, "C", readonly=True)
_FOUND = types.Array(types.int64, 1, "C")


@kernel(types.UniTuple(types.float64, 2)(LINE, CODES), nogil=False)
def quantize_row(x: F32, out: I8, /) -> tuple[float, float]:
    """(d,) into int8 (d,)"""
    square = np.float32(0.0)
    for j in range(x.shape[0]):
        square += x[j] * x[j]
    # The greatest magnitude by its bits, which order as the magnitudes do (NaN above infinity): unlike a maximum of
    # floats, which must treat NaN specially, that one is vectorised.
    bits = x.view(np.int32)
    greatest = np.zeros(1, np.int32)
    for j in range(x.shape[0]):
        greatest[0] = max(greatest[0], bits[j] & np.int32(0x7FFFFFFF))
    top = greatest.view(np.float32)[0]
    if not np.isfinite(top) or top / np.float32(127.0) <= 0:
        out[:] = 0
        return 0.0, float(square)
    factor = np.float32(127.0) / top
    for j in range(x.shape[0]):
        out[j] = np.int8(np.rint(x[j] * factor))
    return float(top / np.float32(127.0)), float(square)


@kernel(types.void(_CODES, types.float32, ROW), nogil=False)
def dequantize_row(codes: I8, scale: float, out: F32, /) -> None:
    """int8 (d,) into (d,)"""
    for j in range(codes.shape[0]):
        out[j] = np.float32(codes[j]) * scale


@kernel(ROW(BLOCK, LINE), nogil=False)
def scores(C: F32, q: F32, /) -> F32:
    """(m, d), (d,) -> (m,)"""
    out = np.empty(C.shape[0], np.float32)
    for i in range(C.shape[0]):
        total = np.float32(0.0)
        for j in range(C.shape[1]):
            total += C[i, j] * q[j]
        out[i] = total
    return out


@kernel(types.Tuple((_FOUND, ROW))(BLOCK, LINE, types.int64), nogil=False)
def cosine_topk(C: F32, q: F32, k: int, /) -> tuple[I64, F32]:
    """(m, d), (d,) -> (k,), (k,)"""
    square = np.float32(0.0)
    for j in range(q.shape[0]):
        square += q[j] * q[j]
    inverse = np.float32(1.0) / np.sqrt(square) if square > 0 else np.float32(0.0)
    k = min(k, C.shape[0])
    found = np.zeros(k, np.int64)
    best = np.full(k, np.float32(-np.inf), np.float32)
    for i in range(C.shape[0]):
        total = np.float32(0.0)
        for j in range(C.shape[1]):
            total += C[i, j] * q[j]
        total *= inverse
        if k == 0 or total <= best[k - 1]:
            continue
        place = k - 1
        while place > 0 and total > best[place - 1]:
            best[place] = best[place - 1]
            found[place] = found[place - 1]
            place -= 1
        best[place] = total
        found[place] = i
    return found, best


@kernel(types.float64(BLOCK, LINE, BLOCK, MATRIX, ROW), nogil=True)
def kmeans_step(X: F32, weights: F32, scores: F32, sums: F32, counts: F32, /) -> float:
    """(n, d), (n,), (n, k) into (k, d), (k,)"""
    quality = 0.0
    for i in range(X.shape[0]):
        label = 0
        for c in range(1, scores.shape[1]):
            if scores[i, c] > scores[i, label]:
                label = c
        weight = weights[i]
        counts[label] += weight
        quality += weight * scores[i, label]
        for j in range(X.shape[1]):
            sums[label, j] += weight * X[i, j]
    return quality
