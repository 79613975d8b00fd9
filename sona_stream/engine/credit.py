"""Credit assignment: from a trajectory's rewards and final quality to one advantage a step.

    A_s = w_s ((r_s - b) / spread_r + 2 (q - b_q) / spread_q)

b is the mean over the trajectory's steps, or the running baseline (shrunk towards the pattern's own mean) when
there is one step only; b_q is the running baseline of qualities, shrunk likewise. Both judgements add: this is
REINFORCE (Williams 1992, https://doi.org/10.1007/BF00992696) with the return r_s + q. (Multiplying them instead
turns a true step signal around whenever the final quality is below its mean; measured, that learns nothing.)
Below `quality_threshold` only what pushes away is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..kernels import Kernels
from .bank import Recorded
from .baselines import RunningBaseline
from .trajectories import Step

__all__ = ["Credit", "attention_weight"]


def attention_weight(attention: ArrayLike, kernels: Kernels) -> float:
    """(n,) attention weights -> in [0.5, 1]: 1 - entropy / (2 log n), so a step that attended to one place counts
    twice as much as one that attended everywhere alike. Without weights: 1. Raises ValueError unless finite.
    """
    if isinstance(attention, (list, tuple)) and not attention:
        return 1.0
    try:
        weights = np.array(attention, dtype=np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise ValueError(f"attention_weights must hold real numbers only: {error}") from None
    weight = kernels.attention_weight(weights)
    if math.isnan(weight):
        raise ValueError("attention_weights must be finite, and their sum too (NaN or infinity found)")
    return weight


_FINAL = 2.0
"""Share of the final quality: a bad answer pushes away from its best step too."""


class Credit:
    """The baselines of one engine."""

    def __init__(self, quality_threshold: float) -> None:
        self._threshold = quality_threshold
        self._quality = RunningBaseline(prior=0.5, prior_weight=64.0, floor=0.3)
        self._reward = RunningBaseline(prior=0.5, prior_weight=8.0, floor=1e-3)
        self._contrast = RunningBaseline(prior=0.0, prior_weight=1.0, floor=1e-3)

    def advantages(self, steps: Sequence[Step], quality: float, known: Recorded) -> NDArray[np.float32]:
        """-> (S,) and moves the baselines. A step with a target or a gradient is a demonstration: its advantage
        is 1 whatever the rewards say.
        """
        final = _FINAL * self._quality.advantage(quality, known.quality, known.judged)
        self._quality.observe(quality)
        parts = iter(self._step_parts([step for step in steps if step.kind == 0], known))
        most = 0.0 if quality < self._threshold else math.inf
        out = [1.0 if step.kind else min(step.weight * (next(parts) + final), most) for step in steps]
        return np.array(out, np.float32)

    def _step_parts(self, steps: Sequence[Step], known: Recorded) -> list[float]:
        if len(steps) == 1:
            reward = steps[0].reward
            part = self._reward.advantage(reward, known.reward, known.rewarded)
            self._reward.observe(reward)
            return [part]
        if not steps:
            return []
        rewards = [step.reward for step in steps]
        mean = math.fsum(rewards) / len(rewards)
        deviations = [reward - mean for reward in rewards]
        self._reward.observe(mean)
        unbiased = math.sqrt(math.fsum(v * v for v in deviations) / (len(rewards) - 1))
        self._contrast.observe_deviation(unbiased)
        return [self._contrast.scaled(v) for v in deviations]

    def state(self) -> dict[str, dict[str, float]]:
        """For snapshots."""
        return {
            "quality": self._quality.state(),
            "reward": self._reward.state(),
            "contrast": self._contrast.state(),
        }

    def restore(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Back from `state`."""
        self._quality.restore(state["quality"])
        self._reward.restore(state["reward"])
        self._contrast.restore(state["contrast"])
