"""Refit on the recent judged answers: what makes noisy ratings enough.

Each minibatch mixes answers judged above and below what was expected. Answers drawn by older versions count with
PPO's clipped ratio against their stored log-probabilities (Schulman et al. 2017, https://arxiv.org/abs/1707.06347),
so that a pass over the same captures stops by itself once it has used them up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ...lora import F32, LoraGradient, LoraWeights, TokenSignal
from .baseline import advantages
from .ewc import Elastic
from .lessons import Lesson
from .optimiser import Moments, Pace, base_moved, base_step_of, contracted, moved, softened, step_of, whitening
from .step import NO_STEP
from .turns import TakingTurns

__all__ = ["Fit", "Plan", "Weighed", "fit", "minibatches", "weigh"]

_INSIDE = 0.95


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How a replay runs; fields as in `LearningSettings`."""

    steps: int
    tokens: int
    top_k: int | None
    anchor: float
    ratio_clip: tuple[float, float]
    shrinkage: float
    quality_threshold: float
    max_kl_to_base: float


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Weighed:
    """A lesson with what it is worth now."""

    lesson: Lesson
    advantage: float


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Where a replay ended. ``mean_kl_to_base`` is that of its last minibatch, nats per token."""

    weights: LoraWeights
    moments: Moments
    steps: int
    mean_kl_to_base: float


def weigh(lessons: Sequence[Lesson], plan: Plan) -> list[Weighed]:
    """Advantages against each other; what says nothing is left out. The threshold gates only pushing towards."""
    judged = [(lesson, lesson.quality) for lesson in lessons if lesson.quality is not None]
    patterns = [lesson.groups[-1] for lesson, _ in judged]
    prompts = [lesson.prompt for lesson, _ in judged]
    values = advantages([q for _, q in judged], patterns, plan.shrinkage, prompts)
    weighed = [Weighed(lesson, 1.0) for lesson in lessons if lesson.quality is None]
    for (lesson, quality), advantage in zip(judged, values, strict=True):
        towards_poor = advantage > 0 and quality < plan.quality_threshold
        if not towards_poor and abs(advantage) >= NO_STEP and len(lesson.capture):
            weighed.append(Weighed(lesson, advantage))
    return weighed


def minibatches(weighed: Sequence[Weighed], tokens: int, seed: int) -> Iterator[list[Weighed]]:
    """Endless batches of at least one answer and about `tokens` tokens, good and bad answers interleaved."""
    rng = np.random.default_rng(seed)
    while True:
        batch: list[Weighed] = []
        size = 0
        for item in _interleaved(weighed, rng):
            if batch and size + len(item.lesson.capture) > tokens:
                yield batch
                batch, size = [], 0
            batch.append(item)
            size += len(item.lesson.capture)
        yield batch


def _interleaved(weighed: Sequence[Weighed], rng: np.random.Generator) -> list[Weighed]:
    """A random order in which both signs are spread evenly."""
    places: list[tuple[float, int]] = []
    for sign in (True, False):
        own = [i for i, item in enumerate(weighed) if (item.advantage > 0) is sign]
        order = rng.permutation(len(own))
        offset = rng.random()
        places += [((place + offset) / len(own), own[int(i)]) for place, i in enumerate(order)]
    return [weighed[i] for _, i in sorted(places)]


async def fit(
    host: TakingTurns,
    weighed: Sequence[Weighed],
    weights: LoraWeights,
    moments: Moments,
    plan: Plan,
    pace: Pace,
    *,
    seed: int,
    slow: bool = False,
    elastic: Elastic | None = None,
) -> Fit:
    """`plan.steps` steps from `weights`, of the micro pair or (``slow``) of the base pair, held by `elastic`. A
    step that finds the policy beyond the KL bound takes it back to the bound instead: KL grows with the square of
    B.
    """
    batches = minibatches(weighed, plan.tokens, seed)
    rng = np.random.default_rng(seed)
    if elastic is not None:
        pace = softened(pace, _stiffness(elastic, weights, pace, slow=slow))
    kl = 0.0
    for _ in range(plan.steps):
        gradient = await _gradient(host, next(batches), weights, plan)
        kl = gradient.mean_kl_to_base
        if kl > plan.max_kl_to_base:
            weights = contracted(weights, _INSIDE * math.sqrt(plan.max_kl_to_base / kl))
        else:
            if elastic is not None:
                gradient = await elastic.added(host, gradient, weights, rng)
            weights, moments = _stepped(gradient, weights, moments, pace, slow=slow)
    return Fit(weights, moments, plan.steps, kl)


def _stiffness(elastic: Elastic, weights: LoraWeights, pace: Pace, *, slow: bool) -> NDArray[np.float64]:
    base, metric = weights.base, pace.curvature.outputs
    if not slow or base is None:
        return elastic.stiffness(weights.micro, metric)
    return elastic.stiffness(base, metric, whitening(base, pace.curvature.inputs))


def _stepped(
    gradient: LoraGradient, weights: LoraWeights, moments: Moments, pace: Pace, *, slow: bool
) -> tuple[LoraWeights, Moments]:
    """One step of the micro pair or (``slow``) of the base pair."""
    if not slow or weights.base is None:
        direction, moments = step_of(gradient, moments, pace)
        return moved(weights, direction), moments
    direction, moments = base_step_of(gradient, weights.base, moments, pace)
    return base_moved(weights, direction), moments


async def _gradient(host: TakingTurns, batch: Sequence[Weighed], weights: LoraWeights, plan: Plan) -> LoraGradient:
    """Judged answers with the clipped ratio; corrections without, for they were never drawn. Every answer counts
    the same: a long one would drown a short one, and says no more about what was liked.
    """
    parts = []
    length = sum(len(item.lesson.capture) for item in batch) / len(batch)
    for corrected in (False, True):
        part = [item for item in batch if (item.lesson.quality is None) is corrected]
        if part:
            signal = TokenSignal(
                weights=weights,
                advantages=[_spread(item, length) for item in part],
                anchor=plan.anchor,
                ratio_clip=None if corrected else plan.ratio_clip,
                top_k=plan.top_k,
            )
            parts.append(await host.gradient([i.lesson.capture for i in part], signal))
    return parts[0] if len(parts) == 1 else _sum(*parts)


def _spread(item: Weighed, length: float) -> F32:
    """(T,): the advantage of each token, where a token of an answer of `length` has the answer's."""
    tokens = len(item.lesson.capture)
    return np.full(tokens, item.advantage * length / tokens, dtype=np.float32)


def _sum(one: LoraGradient, other: LoraGradient) -> LoraGradient:
    tokens = one.tokens + other.tokens
    share = one.tokens / max(tokens, 1)
    return LoraGradient(
        micro_A=one.micro_A + other.micro_A,
        micro_B=one.micro_B + other.micro_B,
        base_A=_both(one.base_A, other.base_A),
        base_B=_both(one.base_B, other.base_B),
        tokens=tokens,
        loss=one.loss + other.loss,
        mean_kl_to_base=share * one.mean_kl_to_base + (1 - share) * other.mean_kl_to_base,
        mean_logprob=share * one.mean_logprob + (1 - share) * other.mean_logprob,
        layers={
            layer: (A + other.layers[layer][0], B + other.layers[layer][1]) for layer, (A, B) in one.layers.items()
        },
    )


def _both(one: F32 | None, other: F32 | None) -> F32 | None:
    return None if one is None or other is None else one + other
