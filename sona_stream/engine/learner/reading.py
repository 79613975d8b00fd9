"""What an answer's form says of the version that gave it: its automatic quality, loops, sameness, length."""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

from ...events import Trajectory

__all__ = ["MARGINS", "MEASURES", "Window", "read"]

MEASURES = ("rating", "score", "coherence", "distinct", "length")
"""rating: what people said. score: the scorers' combined quality. coherence: distinct-2 within an answer. distinct:
distinct-2 over the last answers together, which falls when every question gets the same answer. length: log(1 + n
tokens) / log(257)."""

MARGINS = {"coherence": 0.1, "distinct": 0.15, "length": 0.25}
"""How far below the reference a mean may lie before it counts as a fall, where that is not `canary.margin`: prose,
lists and required forms differ by less than this, and a length may fall to a quarter."""

_TOKENS = 64
"""Of each answer the last so many: loops come late, and equal numbers are compared."""
_FEWEST = 8
_ANSWERS = 8
_LONGEST = 256


class Window:
    """The word pairs of the last few answers."""

    def __init__(self) -> None:
        self._answers: deque[array[int]] = deque(maxlen=_ANSWERS)
        """Each pair as one number: half a kilobyte an answer"""

    def take(self, pairs: Sequence[tuple[int, int]]) -> float:
        """Share of these pairs that neither the window nor this answer had before; then the answer joins it."""
        own = {one << 32 | other for one, other in pairs}
        new = len(own.difference(*self._answers))
        self._answers.append(array("q", own))
        return new / len(pairs)


def read(trajectory: Trajectory, window: Window) -> Iterator[tuple[str, float]]:
    """(measure, value in [0, 1]) of one answer, where it can be told: `sona.storage: none` keeps no token ids."""
    if trajectory.score.value is not None:
        yield "score", trajectory.score.value
    ids = trajectory.token_ids
    count = len(ids) or (trajectory.usage.completion_tokens if trajectory.usage is not None else 0)
    if count:
        yield "length", min(1.0, math.log1p(count) / math.log1p(_LONGEST))
    pairs = list(pairwise(ids[-_TOKENS:]))
    if len(pairs) >= _FEWEST:
        yield "coherence", len(set(pairs)) / len(pairs)
        yield "distinct", window.take(pairs)
