"""The adapter at birth: it changes nothing (B = 0), but it can push a constant direction.

A random row of A cannot: its product with h changes sign from token to token. So the first row is the mean
hidden state over its squared norm, which makes A h about 1 everywhere; the others are small and random.
"""

from __future__ import annotations

import zlib

import numpy as np

from ...lora import F32, HiddenStatistics, LoraWeights, LowRank

__all__ = ["hidden_rms", "initial_weights", "statistics_of", "weights_at_birth"]

_RANDOM_GAIN = 0.5  # standard deviation of A h on the random rows, against 1 on the first


def initial_weights(hidden: F32, rank: int, key: str) -> LoraWeights:
    """`weights_at_birth` from the states (T, d) of the first judged answer."""
    return weights_at_birth(statistics_of(hidden), rank, key)


def weights_at_birth(statistics: HiddenStatistics, rank: int, key: str) -> LoraWeights:
    """`statistics` are of the first judged answer. The key seeds the random rows: births repeat."""
    mean = statistics.mean.astype(np.float64)
    d = mean.shape[0]
    rows = np.random.default_rng(zlib.crc32(key.encode())).standard_normal((rank, d))
    rows *= _RANDOM_GAIN / (statistics.rms * np.sqrt(d))
    rows[0] = mean / max(float(mean @ mean), 1e-12)
    return LoraWeights(LowRank(rows.astype(np.float32), np.zeros((d, rank), dtype=np.float32)))


def statistics_of(hidden: F32) -> HiddenStatistics:
    """Of `hidden` (T, d)."""
    mean = hidden.astype(np.float64).mean(axis=0)
    return HiddenStatistics(hidden.shape[0], mean.astype(np.float32), hidden_rms(hidden))


def hidden_rms(hidden: F32) -> float:
    """Root mean square of the entries of `hidden` (T, d): the unit in which steps are measured."""
    return float(np.sqrt(np.mean(np.square(hidden, dtype=np.float64)))) or 1.0
