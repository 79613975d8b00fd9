"""Softmax and KL reductions over blocks of logits (T, V), compiled. Documentation of each: `kernels.contract`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from ..contract import F32, I64
from .jit import BLOCK, INDEX, MATRIX, ROW, kernel

__all__ = ["kl_rows", "log_probabilities", "softmax_minus_onehot", "variance_rows"]

_LINE = types.Array(types.float32, 1, "C", readonly=True)


@kernel(types.UniTuple(types.float32, 2)(_LINE, types.float32), nogil=True)
def _peak_and_log_sum(row: F32, inverse: Any) -> tuple[Any, Any]:
    """(V,) -> max(row * inverse) and log sum exp(row * inverse - max)"""
    peak = np.float32(-np.inf)
    for j in range(row.shape[0]):
        peak = max(peak, row[j] * inverse)
    total = np.float32(0.0)
    for j in range(row.shape[0]):
        total += np.exp(row[j] * inverse - peak)
    return peak, np.log(total)


@kernel(ROW(BLOCK, INDEX, types.float64), nogil=True)
def log_probabilities(logits: F32, ids: I64, temperature: float, /) -> F32:
    """(T, V), (T,) -> (T,)"""
    inverse = np.float32(1.0 / temperature)
    out = np.empty(logits.shape[0], np.float32)
    for t in range(logits.shape[0]):
        peak, log_sum = _peak_and_log_sum(logits[t], inverse)
        out[t] = logits[t, ids[t]] * inverse - peak - log_sum
    return out


@kernel(types.void(BLOCK, INDEX, types.float64, MATRIX), nogil=True)
def softmax_minus_onehot(logits: F32, ids: I64, temperature: float, out: F32, /) -> None:
    """(T, V), (T,) into (T, V)"""
    inverse = np.float32(1.0 / temperature)
    for t in range(logits.shape[0]):
        peak, log_sum = _peak_and_log_sum(logits[t], inverse)
        shift = peak + log_sum
        for j in range(logits.shape[1]):
            out[t, j] = np.exp(logits[t, j] * inverse - shift)
        out[t, ids[t]] -= np.float32(1.0)


@kernel(ROW(BLOCK, BLOCK, types.float64), nogil=True)
def kl_rows(logits: F32, base_logits: F32, temperature: float, /) -> F32:
    """(T, V) x 2 -> (T,)"""
    inverse = np.float32(1.0 / temperature)
    out = np.empty(logits.shape[0], np.float32)
    for t in range(logits.shape[0]):
        peak, log_sum = _peak_and_log_sum(logits[t], inverse)
        base_peak, base_log_sum = _peak_and_log_sum(base_logits[t], inverse)
        shift, base_shift = peak + log_sum, base_peak + base_log_sum
        total = np.float32(0.0)
        for j in range(logits.shape[1]):
            log_p = logits[t, j] * inverse - shift
            total += np.exp(log_p) * (log_p - (base_logits[t, j] * inverse - base_shift))
        out[t] = total
    return out


@kernel(ROW(BLOCK, BLOCK, types.float64), nogil=True)
def variance_rows(logits: F32, values: F32, temperature: float, /) -> F32:
    """(T, V) x 2 -> (T,)"""
    inverse = np.float32(1.0 / temperature)
    out = np.empty(logits.shape[0], np.float32)
    for t in range(logits.shape[0]):
        peak, log_sum = _peak_and_log_sum(logits[t], inverse)
        shift = peak + log_sum
        mean = np.float32(0.0)
        for j in range(logits.shape[1]):
            mean += np.exp(logits[t, j] * inverse - shift) * values[t, j]
        total = np.float32(0.0)
        for j in range(logits.shape[1]):
            gap = values[t, j] - mean
            total += np.exp(logits[t, j] * inverse - shift) * gap * gap
        out[t] = total
    return out
