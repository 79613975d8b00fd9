"""How the answer ended: by itself, cut off, or stopped by a filter."""

from __future__ import annotations

from collections.abc import Mapping

from ..config.settings import ScoringSettings
from ..events import Delta, Finish, Request
from ..protocols import Scorer
from .weights import weight_of

__all__ = ["FinishReasonScorer", "create_scorer"]

NAME = "finish_reason"

WORTH: Mapping[str, float] = {
    "stop": 1.0,
    "tool_calls": 1.0,
    "function_call": 1.0,
    "end_turn": 1.0,
    "stop_sequence": 1.0,
    "eos": 1.0,
    "length": 0.5,
    "max_tokens": 0.5,
    "content_filter": 0.0,
    "error": 0.0,
}
"""OpenAI's reasons and what compatible servers say in their place; another word is no verdict."""


class _Scoring:
    __slots__ = ("_reasons",)

    def __init__(self) -> None:
        self._reasons: dict[int, str] = {}

    def push(self, delta: Delta) -> None:
        for piece in delta.pieces:
            if piece.finish_reason is not None:
                self._reasons[piece.index] = piece.finish_reason

    def finish(self, finish: Finish | None) -> float | None:
        """Mean over the choices that ended with a known word; a broken or cancelled answer had no say."""
        if finish is None:
            return None
        reasons = list(self._reasons.values()) or [finish.reason or ""]
        known = [WORTH[reason] for reason in reasons if reason in WORTH]
        return sum(known) / len(known) if known else None


class FinishReasonScorer:
    """1 for a natural end, 0.5 for one cut off by a length limit, 0 for a filter's or an error's."""

    name = NAME

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def begin(self, request: Request) -> _Scoring:
        """A fresh judgement."""
        return _Scoring()


def create_scorer(settings: ScoringSettings | None = None) -> Scorer:
    """Entry point `finish_reason`."""
    return FinishReasonScorer(weight_of(NAME, settings, 1.0))
