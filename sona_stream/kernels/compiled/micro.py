"""The micro-LoRA's lesson and step, compiled. Documentation of each: `kernels.contract`."""

from __future__ import annotations

import math

import numpy as np
from numba import types

from ..contract import BROKEN, F32, F64, FLAT, MOVED, UNTOUCHED
from .jit import BLOCK, LINE, LINE64, MATRIX, ROW, SMALL, WEIGHTS, kernel

__all__ = ["micro_push", "micro_step"]

_RUNNING = types.Array(types.float64, 1, "C")
_GUARD = types.Array(types.float64, 2, "C", readonly=True)


@kernel(types.float32(LINE, LINE), nogil=False)
def _dot(a: F32, b: F32) -> float:
    total = np.float32(0.0)
    for j in range(a.shape[0]):
        total += a[j] * b[j]
    return float(total)


@kernel(types.boolean(WEIGHTS), nogil=False)
def _all_finite(W: F32) -> bool:
    """Whether every entry is; most are settled by the sum of squares, which may overflow without them."""
    for k in range(W.shape[0]):
        if math.isfinite(_dot(W[k], W[k])):
            continue
        for j in range(W.shape[1]):
            if not math.isfinite(W[k, j]):
                return False
    return True


@kernel(types.void(ROW, BLOCK, LINE, WEIGHTS, WEIGHTS, ROW), nogil=False)
def micro_push(x: F32, activations: F32, weights: F32, A: F32, Bt: F32, out: F32, /) -> None:
    """(d,), (S, d), (S,) into (d,)"""
    S, d = activations.shape
    adapted = x.copy()
    for k in range(A.shape[0]):
        z = _dot(x, A[k])
        for j in range(d):
            adapted[j] += z * Bt[k, j]
    out[:] = np.float32(0.0)
    for s in range(S):
        weight = weights[s] / np.float32(S)
        for j in range(d):
            out[j] += weight * (activations[s, j] - adapted[j])


@kernel(types.void(SMALL, types.float64), nogil=False)
def _invert(matrix: F64, damp: float) -> None:
    """Matrix (1, 1) or (2, 2) becomes the inverse of (matrix + damp I)"""
    if matrix.shape[0] == 1:
        matrix[0, 0] = 1.0 / (matrix[0, 0] + damp)
        return
    a, b, c, d = matrix[0, 0] + damp, matrix[0, 1], matrix[1, 0], matrix[1, 1] + damp
    determinant = a * d - b * c
    matrix[0, 0], matrix[0, 1] = d / determinant, -b / determinant
    matrix[1, 0], matrix[1, 1] = -c / determinant, a / determinant


@kernel(
    types.void(
        BLOCK, WEIGHTS, types.float64, SMALL, _GUARD, types.float64, types.float64, types.float64, SMALL, SMALL
    ),
    nogil=False,
)  # fmt: skip
def _metrics(
    Z: F32,
    Bt: F32,
    size: float,
    seen: F64,
    guard: F64,
    rate: float,
    damp: float,
    lift: float,
    for_A: F64,
    for_Bt: F64,
) -> None:
    """The inverse second moments of the other side, (r, r), for either factor; `seen` takes Z (n, r) in"""
    n, r = Z.shape
    trace, trace_seen, trace_gram = 0.0, 0.0, 0.0
    for k in range(r):
        for other in range(r):
            moment = 0.0
            for i in range(n):
                moment += np.float64(Z[i, k]) * np.float64(Z[i, other])
            moment /= n
            seen[k, other] += rate * (moment - seen[k, other])
            for_A[k, other] = _dot(Bt[k], Bt[other])
            if k == other:
                trace += moment
    for k in range(r):
        seen[k, k] += lift * trace / r
        for other in range(r):
            for_Bt[k, other] = seen[k, other] + guard[k, other]
        trace_seen += seen[k, k]
        trace_gram += for_A[k, k]
    _invert(for_Bt, damp * trace_seen / r + 1e-12)
    _invert(for_A, damp * trace_gram / r + 1e-4 * size)


@kernel(types.float64(BLOCK, SMALL, BLOCK, types.float32, MATRIX, types.float64), nogil=False)
def _average(rows: F32, metric: F64, sides: F32, divisor: np.float32, mean: F32, rate: float) -> float:
    """Mean (r, d) moves towards the gradient metric (sidesᵀ rows) / divisor; -> mean square of that gradient"""
    (n, d), r = rows.shape, mean.shape[0]
    share = np.float32(rate)
    gradient = np.empty(d, np.float32)
    total = 0.0
    for k in range(r):
        for i in range(n):
            weight = np.float32(0.0)
            for other in range(r):
                weight += np.float32(metric[k, other]) * sides[i, other]
            weight /= divisor
            if i == 0:
                for j in range(d):
                    gradient[j] = weight * rows[i, j]
            else:
                for j in range(d):
                    gradient[j] += weight * rows[i, j]
        total += _dot(gradient, gradient)
        for j in range(d):
            mean[k, j] += share * (gradient[j] - mean[k, j])
    return float(total / (r * d))


@kernel(types.float64(BLOCK, BLOCK, BLOCK, BLOCK), nogil=False)
def _square_of_sum(Y: F32, V: F32, Z: F32, W: F32) -> float:
    """Sum of squares of Y V + Z W, (n, r) and (r, d) each"""
    d = V.shape[1]
    total = 0.0
    for i in range(Y.shape[0]):
        square = np.float32(0.0)
        if V.shape[0] == 2:
            for j in range(d):
                value = Y[i, 0] * V[0, j] + Y[i, 1] * V[1, j] + Z[i, 0] * W[0, j] + Z[i, 1] * W[1, j]
                square += value * value
        else:
            for j in range(d):
                value = Y[i, 0] * V[0, j] + Z[i, 0] * W[0, j]
                square += value * value
        total += np.float64(square)
    return float(total)


@kernel(types.float32(types.float64), nogil=False)
def _inverse_root(square: float) -> np.float32:
    return np.float32(1.0 / math.sqrt(square)) if square > 0 else np.float32(0.0)


@kernel(
    types.int64(
        BLOCK, BLOCK, WEIGHTS, WEIGHTS, MATRIX, MATRIX, SMALL, _GUARD, _RUNNING, LINE64,
        types.float64, types.float64, types.boolean, MATRIX, MATRIX,
    ),
    nogil=False,
)  # fmt: skip
def micro_step(
    X: F32,
    push: F32,
    A: F32,
    Bt: F32,
    mean_A: F32,
    mean_Bt: F32,
    seen: F64,
    guard: F64,
    running: F64,
    rates: F64,
    length: float,
    max_ratio: float,
    first: bool,
    out_A: F32,
    out_Bt: F32,
    /,
) -> int:
    """(n, d) x 2, (r, d) x 4, (r, r) x 2, (3,), (4,) into (r, d) x 2"""
    (n, d), r = X.shape, A.shape[0]
    Z, P = np.empty((n, r), np.float32), np.empty((n, r), np.float32)
    square = np.float32(0.0)
    for i in range(n):
        square += _dot(X[i], X[i])
        for k in range(r):
            Z[i, k], P[i, k] = _dot(X[i], A[k]), _dot(push[i], Bt[k])
    if not 0.0 < square < np.inf:
        return UNTOUCHED

    size = np.float64(square) / n
    for_A, for_Bt = np.empty((r, r)), np.empty((r, r))
    _metrics(Z, Bt, size, seen, guard, 1.0 if first else rates[2], rates[3], 0.1 if first else 0.0, for_A, for_Bt)
    square_A = _average(X, for_A, P, np.float32(size), mean_A, rates[0])
    square_Bt = _average(push, for_Bt, Z, np.float32(1.0), mean_Bt, rates[0])
    running[0] += rates[1] * (square_A - running[0])
    running[1] += rates[1] * (square_Bt - running[1])
    scale_A, scale_Bt = _inverse_root(running[0]), _inverse_root(running[1])
    for i in range(n):
        for k in range(r):
            Z[i, k] *= scale_Bt
            P[i, k] = scale_A * _dot(X[i], mean_A[k])
    change = math.sqrt(_square_of_sum(Z, mean_Bt, P, Bt) / max(np.float64(square), 1e-30))
    if not math.isfinite(change):
        return BROKEN
    running[2] = max(change, 0.9 * running[2] + 0.1 * change)
    if running[2] <= 0:
        return FLAT

    step = np.float32(length / running[2])
    for k in range(r):
        for j in range(d):
            out_A[k, j] = A[k, j] + step * scale_A * mean_A[k, j]
            out_Bt[k, j] = Bt[k, j] + step * scale_Bt * mean_Bt[k, j]
    for i in range(n):
        for k in range(r):
            Z[i, k], P[i, k] = _dot(X[i], out_A[k]), np.float32(0.0)
    ratio = math.sqrt(_square_of_sum(Z, out_Bt, P, out_Bt) / max(np.float64(square), 1e-30))
    if ratio > max_ratio:
        shrink = np.float32(max_ratio / ratio)
        for k in range(r):
            for j in range(d):
                out_Bt[k, j] *= shrink
    if not (math.isfinite(ratio) and _all_finite(out_A) and _all_finite(out_Bt)):
        return BROKEN
    return MOVED
