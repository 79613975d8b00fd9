"""Softmax and KL reductions over blocks of logits (T, V), in numpy."""

from __future__ import annotations

import numpy as np

from ..contract import F32, I64

__all__ = ["kl_rows", "log_probabilities", "softmax_minus_onehot", "variance_rows"]


def _log_softmax(logits: F32, temperature: float) -> F32:
    scaled = logits * np.float32(1.0 / temperature)
    scaled -= scaled.max(axis=1, keepdims=True)
    return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)), dtype=np.float32)


def log_probabilities(logits: F32, ids: I64, temperature: float, /) -> F32:
    """(T, V), (T,) -> (T,)"""
    return np.asarray(_log_softmax(logits, temperature)[np.arange(len(ids)), ids])


def softmax_minus_onehot(logits: F32, ids: I64, temperature: float, out: F32, /) -> None:
    """(T, V), (T,) into (T, V)"""
    np.exp(_log_softmax(logits, temperature), out=out)
    out[np.arange(len(ids)), ids] -= 1


def kl_rows(logits: F32, base_logits: F32, temperature: float, /) -> F32:
    """(T, V) x 2 -> (T,)"""
    log_p, log_q = _log_softmax(logits, temperature), _log_softmax(base_logits, temperature)
    return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(axis=1))


def variance_rows(logits: F32, values: F32, temperature: float, /) -> F32:
    """(T, V) x 2 -> (T,)"""
    p = np.exp(_log_softmax(logits, temperature))
    mean = (p * values).sum(axis=1, keepdims=True)
    return np.asarray((p * (values - mean) ** 2).sum(axis=1))
