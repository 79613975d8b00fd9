"""How much a run measures, what it measures against, and how its rows compare."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from original import Original

__all__ = ["FULL", "QUICK", "Effort", "Run", "compared"]


@dataclasses.dataclass(frozen=True)
class Effort:
    """Counts of one run. A quick one only shows that every row can be made."""

    rounds: int
    block_s: float
    """length of one timed block of ours"""
    repeats: int
    """of what takes seconds or a process of its own"""
    force_learn: int
    """trajectories of the row `force_learn_10000_s`"""
    patterns: tuple[int, ...]
    tokens: int
    streams: int
    learning: int
    """trajectories of one learning run"""
    seeds: int


FULL = Effort(40, 0.004, 3, 10_000, (25, 50, 100, 200), 100_000, 32, 5000, 3)
QUICK = Effort(2, 0.0005, 1, 200, (25, 50), 500, 4, 60, 1)


@dataclasses.dataclass
class Run:
    """One run's circumstances. ``original`` is None without node."""

    effort: Effort
    original: Original | None = None
    original_slow: bool = False
    live_json: Path | None = None
    live_seconds: float = 0.0


def compared(
    value: float | None,
    *,
    guide: float | str | None = None,
    original: float | None = None,
    more_is_better: bool = False,
    **more: float | str | None,
) -> dict[str, float | str | None]:
    """The `compared` of a row. ``ratio`` says how many times better than the original ours is, ``ratio_to_guide``
    the same against the guide's figure: above 1 ours is better, below 1 worse; None where one of them is missing.
    """

    def better(other: float | str | None) -> float | None:
        if value is None or not isinstance(other, int | float):
            return None
        over, under = (value, other) if more_is_better else (other, value)
        return over / under if under else None

    return {
        "guide": guide,
        "original": original,
        "ratio": better(original),
        "ratio_to_guide": better(guide),
        **more,
    }
