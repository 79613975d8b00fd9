"""Running baselines: what a reward is compared with, so that only the unexpected teaches."""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["RunningBaseline"]

_HORIZON = 200.0
_CLIP = 3.0


class RunningBaseline:
    """Mean and spread of a stream of rewards: exact at first, forgetting beyond `_HORIZON` observations.

    The mean starts at a neutral prior worth `prior_weight` observations, so that a stream that is bad from the
    beginning is below the baseline, not equal to it.
    """

    def __init__(self, prior: float, prior_weight: float, floor: float) -> None:
        self.mean = prior
        self._weight = prior_weight
        self._floor = floor
        self._square = 0.0
        self._count = 0.0

    def advantage(
        self, value: float, local_mean: float = 0.0, local_weight: float = 0.0, shrink: float = 8.0
    ) -> float:
        """(value - baseline) / spread, clipped to ±3; a pattern's own mean counts with its weight against 8."""
        baseline = (local_weight * local_mean + shrink * self.mean) / (local_weight + shrink)
        return self.scaled(value - baseline)

    def scaled(self, deviation: float) -> float:
        """A deviation in units of the running spread, clipped to ±3."""
        return max(-_CLIP, min(_CLIP, deviation / self.spread))

    @property
    def spread(self) -> float:
        """Root mean square deviation, never below the floor (rounding must not be blown up to a signal)."""
        return max(self._floor, math.sqrt(self._square))

    def observe(self, value: float) -> None:
        """Take one value into mean and spread."""
        deviation = value - self.mean
        self._weight = min(self._weight + 1, _HORIZON)
        self.mean += deviation / self._weight
        self.observe_deviation(deviation)

    def observe_deviation(self, deviation: float) -> None:
        """Take a deviation from some other mean (the trajectory's own) into the spread alone."""
        self._count = min(self._count + 1, _HORIZON)
        self._square += (deviation * deviation - self._square) / self._count

    def state(self) -> dict[str, float]:
        """For snapshots."""
        return {"mean": self.mean, "weight": self._weight, "square": self._square, "count": self._count}

    def restore(self, state: Mapping[str, float]) -> None:
        """Back from `state`."""
        self.mean, self._weight = float(state["mean"]), float(state["weight"])
        self._square, self._count = float(state["square"]), float(state["count"])
