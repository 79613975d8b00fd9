"""Vectors that the sections share. All are made here; nothing is read from disk."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sona_stream.engine import SonaConfig, SonaEngine

__all__ = ["ATTENTION", "DIM", "F32", "clustered", "record", "trained", "units"]

F32 = NDArray[np.float32]
DIM = 3072
ATTENTION = np.full(64, 1 / 64, np.float32)


def units(n: int, dim: int, random: np.random.Generator) -> F32:
    """(n, dim) unit rows, uniform on the sphere"""
    rows = random.standard_normal((n, dim), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clustered(n: int, centres: F32, spread: float, random: np.random.Generator) -> F32:
    """(n, dim) unit rows; row i lies around centre i mod k at distance ``spread`` before normalisation."""
    rows = centres[np.arange(n) % len(centres)] + np.float32(spread) * units(n, centres.shape[1], random)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def record(engine: SonaEngine, query: F32, activation: F32, quality: float, reward: float = 0.8) -> None:
    """One trajectory of one step, as the guide's loop makes it."""
    trajectory = engine.begin_trajectory(query)
    engine.add_trajectory_step(trajectory, activation, ATTENTION, reward)
    engine.end_trajectory(trajectory, quality)


def trained(config: SonaConfig, *, trajectories: int = 20) -> SonaEngine:
    """An engine whose micro-LoRA is no longer zero: it has seen good and bad answers."""
    engine = SonaEngine.with_config(config)
    random = np.random.default_rng(5)
    rows = units(2 * trajectories, config.hidden_dim, random)
    for i in range(trajectories):
        record(engine, rows[2 * i], rows[2 * i + 1], quality=0.9 if i % 2 else 0.3, reward=0.9 if i % 2 else 0.2)
    engine.flush()
    return engine
