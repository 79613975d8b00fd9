"""What an episode is worth: one for being given, one for every use, each halving every half-life.

Kept as ``standing`` = log2 of the worth, carried back to time 0: decay leaves it as it is, so the order of two
episodes does not depend on when they are compared (forward decay: Cormode et al. 2009,
https://doi.org/10.1109/ICDE.2009.65).
"""

from __future__ import annotations

import math

__all__ = ["born", "used"]


def born(now: float, half_life: float) -> float:
    """Standing of an episode given at `now` (both in seconds)."""
    return now / half_life


def used(standing: float, now: float, half_life: float) -> float:
    """Standing after one use more."""
    worth = 2.0 ** min(standing - now / half_life, 60.0)
    return math.log2(worth + 1.0) + now / half_life
