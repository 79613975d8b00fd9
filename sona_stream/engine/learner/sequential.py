"""Whether one stream of values in [0, 1] has a lower mean than another, asked after every value without ever
having to say in advance how many there will be.

A stream's evidence that its mean is above m is the wealth of a gambler who bets on it, the product of

    1 + c (x / m - 1)

which cannot grow on average while the mean is m or less, so that it exceeds 1/alpha with a probability of at most
alpha, ever (Ville): testing by betting (Waudby-Smith & Ramdas 2024, https://arxiv.org/abs/2010.09686). The size c
of a bet is mixed over a few values, which is a fair game again.

Two streams are compared as by Shekhar & Ramdas 2024 (https://arxiv.org/abs/2112.09162): whatever the second's mean
m is, the wealth of betting that it is above m, times that of betting that the first's is below m - margin, is what
counts, so the least over all m is taken. Between the points of the grid both factors are bounded by those at its
ends: nothing is lost to it but a little power.

What it needs: of the first stream no value is expected (given all before) below what the second's are, if there is
no harm. Values may come in any order, from changing versions, and while nobody randomises. A drift of the questions
that falls between the two streams is not told from harm: that is what `margin` and a share below 1 are for.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["CELLS", "Stream", "below", "below_value", "cells", "not_below"]

CELLS = 40
_EDGES = np.arange(CELLS + 1) / CELLS
_BETS = np.array([0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 0.95])[:, None]
_UP = _BETS / np.maximum(_EDGES, 0.5 / CELLS)
_DOWN = _BETS / np.maximum(1.0 - _EDGES, 0.5 / CELLS)
_NONE = np.zeros_like(_UP)

F64 = NDArray[np.float64]


class Stream:
    """What a sequence of values in [0, 1] says about its mean."""

    __slots__ = ("_down", "_up", "n", "total")

    def __init__(self) -> None:
        self.n = 0
        self.total = 0.0
        self._up, self._down = _NONE, _NONE  # never written to: an empty stream takes no room

    def push(self, value: float) -> None:
        """The next value; what lies outside [0, 1] counts as the nearer end."""
        value = min(1.0, max(0.0, value))
        self.n += 1
        self.total += value
        self._up = self._up + np.log1p(_UP * (value - _EDGES))
        self._down = self._down + np.log1p(_DOWN * (_EDGES - value))

    @property
    def mean(self) -> float:
        """Of the values so far; 0 before the first."""
        return self.total / self.n if self.n else 0.0

    def above(self) -> F64:
        """(CELLS + 1,) log of the wealth against "the mean is at most i / CELLS"; falls with i."""
        return _mixed(self._up)

    def below(self) -> F64:
        """(CELLS + 1,) log of the wealth against "the mean is at least i / CELLS"; rises with i."""
        return _mixed(self._down)

    @classmethod
    def from_arrays(cls, held: Mapping[str, NDArray[np.float64]]) -> Stream:
        """Inverse of `to_arrays`."""
        stream = cls()
        stream.n, stream.total = int(held["sums"][0]), float(held["sums"][1])
        stream._up, stream._down = held["up"].astype(np.float64), held["down"].astype(np.float64)
        return stream

    def to_arrays(self) -> dict[str, NDArray[np.float64]]:
        """Everything in it, as it is now: later values leave these alone."""
        return {"sums": np.asarray([self.n, self.total]), "up": self._up, "down": self._down}


def cells(margin: float) -> int:
    """A margin in cells of the grid, rounded up."""
    return int(np.ceil(margin * CELLS - 1e-9))


def below(one: Stream, other: Stream, margin: float) -> float:
    """Log of the evidence against "the mean of `one` is at least that of `other` less the margin"."""
    shift = cells(margin)
    own = np.zeros(CELLS)  # a mean below 0 cannot be shown, nor need it be: wealth that was not bet
    own[shift:] = one.below()[: CELLS - shift]
    return float(np.min(own + other.above()[1:]))


def not_below(one: Stream, other: Stream, margin: float) -> float:
    """Log of the evidence against "the mean of `one` is at most that of `other` less the margin"."""
    shift = cells(margin)
    # Where m - margin is below 0, no mean can be at most that: those cells are excluded.
    start = max(shift - 1, 0)
    own = one.above()[start + 1 - shift : CELLS + 1 - shift]
    return float(np.min(own + other.below()[start:CELLS]))


def below_value(one: Stream, value: float) -> float:
    """Log of the evidence against "the mean of `one` is at least `value`" (rounded down to the grid)."""
    return float(one.below()[int(value * CELLS + 1e-9)])


def _mixed(sums: F64) -> F64:
    top = sums.max(axis=0)
    return np.asarray(top + np.log(np.exp(sums - top).mean(axis=0)))
