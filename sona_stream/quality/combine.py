"""Several scorers as one: their weighted geometric mean, with every part visible.

The parts each say how free an answer is of one defect, so they multiply: an empty answer is worth nothing however
cleanly it ended. A scorer that cannot judge takes no part, and one of weight 0 is shown but not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import ConfigError
from ..events import Delta, Finish, Request, Score
from ..protocols import Scorer, Scoring

__all__ = ["Combined", "CombinedScoring", "create_combined"]


class CombinedScoring:
    """One answer under all scorers at once."""

    __slots__ = ("_parts",)

    def __init__(self, parts: Sequence[tuple[str, float, Scoring]]) -> None:
        self._parts = parts

    def push(self, delta: Delta) -> None:
        """Show every scorer this increment."""
        if delta.pieces:
            for _, _, scoring in self._parts:
                scoring.push(delta)

    def finish(self, finish: Finish | None) -> Score:
        """The verdict, whose ``value`` is None when nobody judged.

        ``finish`` is None for a broken or cancelled answer.
        """
        parts: dict[str, float] = {}
        total, logs = 0.0, 0.0
        for name, weight, scoring in self._parts:
            value = scoring.finish(finish)
            if value is None or math.isnan(value):
                continue
            parts[name] = value = min(1.0, max(0.0, value))
            if weight:
                total += weight
                logs += weight * (math.log(value) if value else -math.inf)
        return Score(value=math.exp(logs / total) if total else None, parts=parts)


class Combined:
    """Begins a `CombinedScoring` for each request."""

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        self.scorers = tuple(scorers)
        names = [scorer.name for scorer in self.scorers]
        if len(set(names)) != len(names):
            raise ConfigError(f"two scorers have the same name: {', '.join(sorted(names))}")

    def begin(self, request: Request) -> CombinedScoring:
        """A fresh judgement of the answer to this request."""
        return CombinedScoring([(one.name, one.weight, one.begin(request)) for one in self.scorers])


def create_combined(scorers: Sequence[Scorer]) -> Combined:
    """One judge out of several. Raises ConfigError when two have the same name."""
    return Combined(scorers)
