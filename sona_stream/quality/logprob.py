"""How sure the model was of its own words, where log-probabilities are known."""

from __future__ import annotations

import math

from ..config.settings import ScoringSettings
from ..events import Delta, Finish, Request
from ..protocols import Scorer
from .weights import weight_of

__all__ = ["LogprobScorer", "create_scorer"]

NAME = "logprob"
_FLOOR = -20.0
"""One impossible token must not decide about a whole answer."""


class _Scoring:
    __slots__ = ("_sums",)

    def __init__(self) -> None:
        self._sums: dict[int, tuple[float, int]] = {}

    def push(self, delta: Delta) -> None:
        for piece in delta.pieces:
            for logprob in piece.logprobs:
                if logprob != logprob:  # NaN: not known after all
                    continue
                total, count = self._sums.get(piece.index, (0.0, 0))
                self._sums[piece.index] = (total + min(0.0, max(_FLOOR, logprob)), count + 1)

    def finish(self, finish: Finish | None) -> float | None:
        """Mean over choices; None when no token's log-probability was known."""
        if not self._sums:
            return None
        means = [math.exp(total / count) for total, count in self._sums.values()]
        return sum(means) / len(means)


class LogprobScorer:
    """exp(mean natural log-probability a token), the inverse of the answer's perplexity under its own policy.

    Confidence, not truth: a model is also sure of its loops, so its share is half the others'.
    """

    name = NAME

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def begin(self, request: Request) -> _Scoring:
        """A fresh judgement."""
        return _Scoring()


def create_scorer(settings: ScoringSettings | None = None) -> Scorer:
    """Entry point `logprob`."""
    return LogprobScorer(weight_of(NAME, settings, 0.5))
