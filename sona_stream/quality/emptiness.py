"""Whether there is an answer at all."""

from __future__ import annotations

import unicodedata

from ..config.settings import ScoringSettings
from ..events import Delta, Finish, Request
from ..protocols import Scorer
from .weights import weight_of

__all__ = ["EmptinessScorer", "create_scorer"]

NAME = "emptiness"
_ONLY_PUNCTUATION = 0.25
_CALLS = ("tool_calls", "function_call")


def _worth(text: str) -> float:
    """1 with a letter, digit or symbol of any script; 0.25 with punctuation alone; 0 with nothing visible."""
    worth = 0.0
    for char in text:
        if char.isalnum():
            return 1.0
        category = unicodedata.category(char)
        if category[0] == "S":
            return 1.0
        if category[0] == "P":
            worth = _ONLY_PUNCTUATION
    return worth


class _Scoring:
    __slots__ = ("_choices", "_worth")

    def __init__(self, choices: int) -> None:
        self._choices = choices
        self._worth: dict[int, float] = {}

    def push(self, delta: Delta) -> None:
        worth = self._worth
        for piece in delta.pieces:
            before = worth.get(piece.index, 0.0)
            if before == 1.0:
                continue
            if piece.finish_reason in _CALLS:
                worth[piece.index] = 1.0  # the answer is a call, which has no text
            elif piece.text:
                worth[piece.index] = max(before, _worth(piece.text))

    def finish(self, finish: Finish | None) -> float | None:
        """Mean over all choices that were asked for; of a broken or cancelled answer over those that began."""
        if finish is None:
            begun = [worth for worth in self._worth.values() if worth]
            return sum(begun) / len(begun) if begun else None
        if finish.reason in _CALLS and not self._worth:
            return 1.0
        return sum(self._worth.values()) / max(self._choices, len(self._worth))


class EmptinessScorer:
    """1 for content or a tool call, 0.25 for punctuation alone, 0 for nothing. Length is no merit."""

    name = NAME

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def begin(self, request: Request) -> _Scoring:
        """A fresh judgement."""
        return _Scoring(max(1, request.sampling.n))


def create_scorer(settings: ScoringSettings | None = None) -> Scorer:
    """Entry point `emptiness`."""
    return EmptinessScorer(weight_of(NAME, settings, 1.0))
