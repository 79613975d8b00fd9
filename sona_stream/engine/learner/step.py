"""One step on one judgement, under a budget on how far it may move the policy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ...lora import Capture, LoraGradient, LoraWeights, TokenSignal
from ...protocols import HiddenStateHost
from .ewc import Elastic
from .optimiser import Direction, Moments, Pace, moved, softened, step_of
from .turns import TakingTurns

__all__ = ["NO_STEP", "Step", "instant_step", "within_budget"]

NO_STEP = 1e-3
"""Advantages smaller than this say nothing new."""

_OFF_POLICY = (0.0, 2.0)  # a token that another version drew counts at most twice
_MARGIN = 0.97
_TRIES = 8


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Where a step leads, and the predicted KL (nats per token) that it costs."""

    weights: LoraWeights
    moments: Moments
    predicted_kl: float
    gradient: LoraGradient


async def instant_step(
    host: TakingTurns,
    capture: Capture,
    weights: LoraWeights,
    moments: Moments,
    *,
    advantage: float,
    demonstration: bool,
    anchor: float,
    pace: Pace,
    step_kl: float,
    elastic: Elastic | None = None,
) -> Step | None:
    """The step for one judged answer; None when the host finds no direction inside the budget.

    The budget is step_kl * min(1, advantage^2): a small surprise moves little.
    """
    signal = TokenSignal(
        weights=weights,
        advantages=[np.full(len(capture), advantage, dtype=np.float32)],
        anchor=anchor,
        ratio_clip=None if demonstration else _OFF_POLICY,
    )
    gradient = await host.gradient([capture], signal)
    if elastic is not None:
        pace = softened(pace, elastic.stiffness(weights.micro, pace.curvature.outputs))
        rng = np.random.default_rng(len(capture))
        gradient = await elastic.added(host, gradient, weights, rng)
    direction, after = step_of(gradient, moments, pace)
    budget = step_kl * min(1.0, advantage * advantage)
    found = await within_budget(host, [capture], weights, direction, budget)
    return None if found is None else Step(found[0], after, found[1], gradient)


async def within_budget(
    host: HiddenStateHost,
    captures: Sequence[Capture],
    old: LoraWeights,
    direction: Direction,
    budget: float,
) -> tuple[LoraWeights, float] | None:
    """The longest step along `direction`, at most all of it, whose predicted KL is within `budget`.

    KL grows with the square of a step's length but for the product of both factors' changes, so the scaled step
    is asked for again until it holds.
    """
    scale = 1.0
    for _ in range(_TRIES):
        new = moved(old, direction, scale)
        cost = await host.predicted_kl(captures, old, new)
        if cost <= budget:
            return new, cost
        if not math.isfinite(cost):
            return None
        scale *= _MARGIN * math.sqrt(budget / cost)
    return None
