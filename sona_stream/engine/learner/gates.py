"""What a new version must pass before it is served, and on which answers that is looked at.

The bounds are against the base model, not against the version before: many small steps cannot add up to what one
step may not do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest

import numpy as np

from ...config.settings import LearningSettings
from ...lora import Evaluation, LoraWeights
from .lessons import Lesson, up_to

__all__ = ["GATES", "Limits", "Verdict", "judge", "sample"]

GATES = (
    "finite",
    "delta_ratio",
    "kl_to_base",
    "token_kl",
    "logprob_drop",
    "pattern_drop",
    "degenerate",
    "no_evidence",
    "budget",
)
"""Why a version may be held back: those of `judge`, no answer to check it on, no step within its budget."""

_OTHERS = 4
"""Every so many-th answer of a sample is one that the key does not learn from."""
_FEWEST = 2
"""Accepted answers of one pattern below which nothing is said of it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Bounds, in the units of `LearningSettings`."""

    max_kl_to_base: float
    max_delta_ratio: float
    max_logprob_drop: float
    max_token_kl: float = math.inf
    max_repetition: float = math.inf

    @classmethod
    def of(cls, settings: LearningSettings) -> Limits:
        """Those that are configured."""
        return cls(*(getattr(settings, field.name) for field in dataclasses.fields(cls)))


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """`gate` names the first bound that was passed ("" when none was); `metrics` what was measured."""

    gate: str
    reason: str
    metrics: dict[str, float]

    @property
    def ok(self) -> bool:
        """Whether the version may be served."""
        return not self.gate


def judge(
    weights: LoraWeights,
    evaluation: Evaluation,
    accepted: Sequence[bool],
    limits: Limits,
    patterns: Sequence[str] | None = None,
) -> Verdict:
    """`evaluation` is of `weights` on a sample of lessons; `accepted` says which of those answers were good,
    `patterns` to which pattern each belongs (None: all to one).

    Checked in this order: finite; mean |h' - h| / |h|; KL(p || p_base), its mean over tokens and its largest; the
    fall of the accepted answers' mean log-likelihood per token against the base model, of all together and of each
    pattern's by itself (less two standard errors over its answers, for they are few); and degenerate text: by how
    much a drawn token has become likelier to repeat another one, where the host says it.
    """
    falls = _falls(evaluation, accepted, patterns or [""] * len(accepted))
    metrics = {
        "mean_kl_to_base": evaluation.mean_kl_to_base,
        "max_kl_to_base": evaluation.max_kl_to_base,
        "mean_delta_ratio": evaluation.mean_delta_ratio,
        "accepted_logprob_drop": _mean([fall for own in falls.values() for fall in own]),
        "pattern_logprob_drop": max(map(_certain_fall, falls.values()), default=0.0),
        "repetition_rise": _repetition_rise(evaluation),
    }
    if not (weights.is_finite() and evaluation.finite and all(np.isfinite(list(metrics.values())))):
        return Verdict("finite", "not finite", {})
    for gate, name, limit in (
        ("delta_ratio", "mean_delta_ratio", limits.max_delta_ratio),
        ("kl_to_base", "mean_kl_to_base", limits.max_kl_to_base),
        ("token_kl", "max_kl_to_base", limits.max_token_kl),
        ("logprob_drop", "accepted_logprob_drop", limits.max_logprob_drop),
        ("pattern_drop", "pattern_logprob_drop", limits.max_logprob_drop),
        ("degenerate", "repetition_rise", limits.max_repetition),
    ):
        if metrics[name] > limit:
            return Verdict(gate, f"{name} {metrics[name]:.4g} is above {limit:g}", metrics)
    return Verdict("", "", metrics)


def sample(
    own: Sequence[Lesson],
    others: Sequence[Lesson],
    accepted: Callable[[Lesson], bool],
    tokens: int,
) -> list[Lesson]:
    """About `tokens` tokens of a repeatable random choice. Of the key's `own` lessons accepted answers and the rest
    take turns while there are both, and so do their patterns; every fourth is an accepted answer of another group,
    which a key that is used for more than it was taught must not spoil.
    """
    good, rest = ([one for one in own if accepted(one) is sign] for sign in (True, False))
    mixed = [one for pair in zip_longest(_by_turns(good), _by_turns(rest)) for one in pair if one is not None]
    foreign = iter(_by_turns([one for one in others if accepted(one)]))
    chosen: list[Lesson] = []
    for place, one in enumerate(mixed, start=1):
        chosen.append(one)
        if place % (_OTHERS - 1) == 0 and (more := next(foreign, None)) is not None:
            chosen.append(more)
    return up_to(chosen, tokens)


def _by_turns(lessons: Sequence[Lesson]) -> list[Lesson]:
    """Shuffled, then the patterns one after the other."""
    order = np.random.default_rng(len(lessons)).permutation(len(lessons))
    by_pattern: dict[str, list[Lesson]] = {}
    for place in order:
        by_pattern.setdefault(lessons[int(place)].groups[-1], []).append(lessons[int(place)])
    rounds: Iterable[tuple[Lesson | None, ...]] = zip_longest(*by_pattern.values())
    return [one for each in rounds for one in each if one is not None]


def _falls(
    evaluation: Evaluation, accepted: Sequence[bool], patterns: Sequence[str]
) -> dict[str, list[tuple[float, int]]]:
    """Pattern -> (base minus adapted log-likelihood, tokens) of each of its accepted answers."""
    found: dict[str, list[tuple[float, int]]] = {}
    rows = zip(evaluation.logprobs, evaluation.base_logprobs, accepted, patterns, strict=True)
    for now, base, good, pattern in rows:
        if good and len(now):
            fall = float(np.sum(base.astype(np.float64) - now.astype(np.float64)))
            found.setdefault(pattern, []).append((fall, len(now)))
    return found


def _mean(falls: Sequence[tuple[float, int]]) -> float:
    """Per token; 0 when there are none."""
    tokens = sum(count for _, count in falls)
    return sum(fall for fall, _ in falls) / tokens if tokens else 0.0


def _certain_fall(falls: Sequence[tuple[float, int]]) -> float:
    """The mean fall per token less two standard errors over the answers; -inf would hide a NaN, so a pattern with
    too few answers counts as unchanged.
    """
    if len(falls) < _FEWEST:
        return 0.0
    each = [fall / count for fall, count in falls]
    return _mean(falls) - 2.0 * float(np.std(each, ddof=1)) / math.sqrt(len(each))


def _repetition_rise(evaluation: Evaluation) -> float:
    """The larger rise of the two chances of a repeat (see `Evaluation`); 0 where the host does not say."""
    pairs = (
        (evaluation.collision, evaluation.base_collision),
        (evaluation.repeat_mass, evaluation.base_repeat_mass),
    )
    return max((now - base for now, base in pairs if now is not None and base is not None), default=0.0)
