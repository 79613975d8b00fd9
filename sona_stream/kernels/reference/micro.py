"""The micro-LoRA's lesson and step, in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..contract import BROKEN, F32, F64, FLAT, MOVED, UNTOUCHED
from .lora import lora_gradients, lora_row

__all__ = ["micro_push", "micro_step"]


def micro_push(x: F32, activations: F32, weights: F32, A: F32, Bt: F32, out: F32, /) -> None:
    """(d,), (S, d), (S,) into (d,)"""
    adapted, _ = lora_row(x, A, Bt)
    np.divide(weights @ (activations - adapted), np.float32(len(weights)), out=out)


def _inverse(matrix: F64) -> F64:
    """Of a positive definite (1, 1) or (2, 2); ten times quicker than LAPACK at these sizes"""
    if len(matrix) == 1:
        return np.asarray(1.0 / matrix)
    (a, b), (c, d) = matrix.tolist()
    return np.asarray(np.array([[d, -b], [-c, a]]) / (a * d - b * c))


def _scaled(mean: F32, square: float) -> F32:
    return np.zeros_like(mean) if square == 0 else mean / np.float32(math.sqrt(square))


def _relative(change: NDArray[np.floating[Any]], square: float) -> float:
    return math.sqrt(float(np.vdot(change, change)) / max(square, 1e-30))


@np.errstate(invalid="ignore", over="ignore")
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
    square = float(np.vdot(X, X))
    if not 0.0 < square < math.inf:
        return UNTOUCHED
    rate_mean, rate_square, rate_seen, damp = rates.tolist()
    rank, size, unit = len(A), square / len(X), np.eye(len(A))
    grad_A, grad_Bt = lora_gradients(push, X, A, Bt)
    Z = (X @ A.T).astype(np.float64)
    moment = Z.T @ Z / len(X)
    seen += (1.0 if first else rate_seen) * (moment - seen)
    if first:
        seen += 0.1 * np.trace(moment) / rank * unit
    gram = (Bt @ Bt.T).astype(np.float64)
    for_Bt = _inverse(seen + guard + (damp * np.trace(seen) / rank + 1e-12) * unit)
    for_A = _inverse(gram + (damp * np.trace(gram) / rank + 1e-4 * size) * unit)
    grad_Bt = for_Bt.astype(np.float32) @ grad_Bt
    grad_A = for_A.astype(np.float32) @ grad_A / np.float32(size)
    for place, mean, grad in ((0, mean_A, grad_A), (1, mean_Bt, grad_Bt)):
        mean += np.float32(rate_mean) * (grad - mean)
        running[place] += rate_square * (float(np.vdot(grad, grad)) / grad.size - running[place])
    to_A, to_Bt = _scaled(mean_A, running[0]), _scaled(mean_Bt, running[1])

    change = _relative((X @ A.T) @ to_Bt + (X @ to_A.T) @ Bt, square)
    if not math.isfinite(change):
        return BROKEN
    running[2] = max(change, 0.9 * running[2] + 0.1 * change)
    if running[2] <= 0:
        return FLAT
    step = np.float32(length / running[2])
    np.add(A, step * to_A, out=out_A)
    np.add(Bt, step * to_Bt, out=out_Bt)
    ratio = _relative((X @ out_A.T) @ out_Bt, square)
    if ratio > max_ratio:
        out_Bt *= np.float32(max_ratio / ratio)
    sound = math.isfinite(ratio) and np.isfinite(out_A).all() and np.isfinite(out_Bt).all()
    return MOVED if sound else BROKEN
