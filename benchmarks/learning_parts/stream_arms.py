"""Ways to adapt a frozen model's last layer to a stream of text: each predicts a segment, then learns from it.

All use the same exact gradients over the whole vocabulary. Rates were chosen on segments 500-539 of the domains
gsm8k_style, code_anyio, pubmedqa, wikitext2 and shakespeare, which no row reports.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from sona_stream.engine.learner.consolidation import empty_base
from sona_stream.engine.learner.initial import initial_weights
from sona_stream.engine.learner.optimiser import Moments, Pace, base_moved, base_step_of, moved, step_of
from sona_stream.lora import F32, Capture, Curvature, LoraGradient, LoraWeights, LowRank, TokenSignal

from .head_host import HeadHost

__all__ = ["Arm", "BaseArm", "MicroArm", "PlainAdam"]


class Arm(Protocol):
    """One learner of one stream."""

    async def see(self, host: HeadHost, segment: Capture) -> float:
        """Mean log-likelihood per token of a segment as predicted, before learning from it."""
        ...


class MicroArm:
    """The learner's micro pair, rank 2: natural gradient on B, Adam on A (`optimiser`). The curvature is that of
    the stream's first segment, as the learner measures it at birth.
    """

    stride, rate = 0.2, 0.02

    def __init__(self, curvature: Curvature, seed: int, *, rank: int = 2) -> None:
        self._curvature = curvature
        self.weights = initial_weights(curvature, rank, f"seed {seed}")
        self._moments: Moments = {"rms": np.asarray([curvature.rms], dtype=np.float32)}

    async def see(self, host: HeadHost, segment: Capture) -> float:
        """As `Arm`."""
        gradient = await host.gradient([segment], demonstration(segment, self.weights))
        self.learn(gradient)
        return gradient.mean_logprob

    def learn(self, gradient: LoraGradient) -> None:
        """One step."""
        direction, self._moments = step_of(gradient, self._moments, self._pace(self.rate))
        self.weights = moved(self.weights, direction)

    def _pace(self, rate: float) -> Pace:
        return Pace(self._curvature, self.stride, rate, 1.0)


class BaseArm(MicroArm):
    """Micro pair and a base pair of rank 16, born white on the first segment's states, both taking every step."""

    stride, base_rate = 0.05, 0.004

    def __init__(self, curvature: Curvature, seed: int, *, base_rank: int = 16) -> None:
        super().__init__(curvature, seed)
        assert curvature.inputs is not None
        self.weights = dataclasses.replace(self.weights, base=empty_base(curvature.inputs, base_rank))

    def learn(self, gradient: LoraGradient) -> None:
        """One step of both."""
        super().learn(gradient)
        assert self.weights.base is not None
        pace = self._pace(self.base_rate)
        direction, self._moments = base_step_of(gradient, self.weights.base, self._moments, pace)
        self.weights = base_moved(self.weights, direction)


class PlainAdam:
    """Dynamic evaluation (Krause et al. 2018, https://arxiv.org/abs/1709.07432) of the same parameters, the micro
    pair, by Adam (Kingma & Ba 2015) at one rate for every entry: the best of 1e-4, 3e-4, 1e-3, 3e-3 and 1e-2.
    """

    def __init__(self, curvature: Curvature, seed: int, *, rank: int = 2, rate: float = 3e-3) -> None:
        self.weights = initial_weights(curvature, rank, f"seed {seed}")
        self._rate, self._count = rate, 0
        self._first: dict[str, F32] = {}
        self._second: dict[str, F32] = {}

    async def see(self, host: HeadHost, segment: Capture) -> float:
        """As `Arm`."""
        gradient = await host.gradient([segment], demonstration(segment, self.weights))
        self._count += 1
        micro, tokens = self.weights.micro, np.float32(gradient.tokens)
        A = micro.lora_A - self._step("A", gradient.micro_A / tokens)
        B = micro.lora_B - self._step("B", gradient.micro_B / tokens)
        self.weights = LoraWeights(LowRank(A, B, micro.scaling))
        return gradient.mean_logprob

    def _step(self, name: str, g: F32) -> F32:
        m = self._first[name] = 0.9 * self._first.get(name, np.zeros_like(g)) + 0.1 * g
        v = self._second[name] = 0.999 * self._second.get(name, np.zeros_like(g)) + 0.001 * g * g
        m, v = m / (1 - 0.9**self._count), v / (1 - 0.999**self._count)
        return np.asarray(self._rate * m / (np.sqrt(v) + 1e-8), dtype=np.float32)


def demonstration(segment: Capture, weights: LoraWeights) -> TokenSignal:
    """Text to be imitated, with no pull to the base model."""
    return TokenSignal(weights, [np.ones(len(segment), dtype=np.float32)])
