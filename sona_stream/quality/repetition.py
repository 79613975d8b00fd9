"""Whether the answer goes round in circles.

The text is cut into units of about a word in any script. A sequence of four units that occurred within the last
`WINDOW` units already is a repeat. Natural text, code and tables have some; a model that is caught in a loop has
hardly anything else. State is bounded, and where the stream was cut makes no difference.
"""

from __future__ import annotations

import re

from ..config.settings import ScoringSettings
from ..events import Delta, Finish, Request
from ..protocols import Scorer
from .weights import weight_of

__all__ = ["LoopMeter", "RepetitionScorer", "create_scorer", "units"]

NAME = "repetition"
WINDOW = 256
"""Units that a repeat may look back."""
TOLERATED = 0.75
"""Share of repeats that is still ordinary: source code with many alike lines reaches it, prose stays below 0.3."""
_FADE = 1 / 64
"""The recent share of repeats forgets at this rate a unit: a loop at the end of a long answer is seen."""
_LEAST = 8
"""Four-unit sequences below which there is nothing to judge."""
_BUFFER = 192
"""Characters gathered before they are cut into units: the cost of a push is mostly an append."""

_IDEOGRAPHS = (
    "\u3041-\u30ff\u3100-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_UNSPACED = "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"
_MARKS = (
    "\u0000-\u002f\u003a-\u0040\u005b-\u0060\u007b-\u00a9\u00ab-\u00b1\u00b4\u00b6-\u00b8\u00bb\u00bf"
    "\u0589\u05be\u060c\u061b\u061f\u06d4\u0964\u0965\u2000-\u200b\u200e-\u206f\u2190-\u2bff\u3000-\u3020\u3030"
    "\ufe30-\ufe6f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\U0001f000-\U0001faff"
)
_UNIT = re.compile(
    f"[{_IDEOGRAPHS}]{{1,2}}"  # Chinese, Japanese: a word has about two characters
    f"|[{_UNSPACED}]{{1,4}}"  # Thai, Lao, Tibetan, Burmese, Khmer: no spaces, about four
    f"|[^\\s{_MARKS}{_IDEOGRAPHS}{_UNSPACED}]{{1,16}}"  # a word of a script with spaces, or 16 characters of one
    r"|\S"  # punctuation, symbols, emoji: each by itself
)


def units(text: str) -> list[str]:
    """A whole text's units, for tests and for reading."""
    return [unit.lower() for unit in _UNIT.findall(text)]


class LoopMeter:
    """Share of repeated four-unit sequences of one text that comes in pieces."""

    __slots__ = ("_a", "_b", "_buffer", "_c", "_carry", "_last", "_position", "_recent", "_repeats", "_size")

    def __init__(self) -> None:
        self._buffer: list[str] = []
        self._size = 0
        self._carry = ""
        self._a = self._b = self._c = ""
        self._last: dict[tuple[str, str, str, str], int] = {}
        self._position = 0
        self._repeats = 0
        self._recent = 0.0

    def push(self, text: str) -> None:
        """The next piece, cut anywhere."""
        self._buffer.append(text)
        self._size += len(text)
        if self._size >= _BUFFER:
            self._cut()

    def finish(self) -> float | None:
        """Freedom from loops in [0, 1]; None for a text too short to tell."""
        self._cut()
        if self._carry:
            self._count([self._carry])
            self._carry = ""
        sequences = self._position - 3
        if sequences < _LEAST:
            return None
        share = max(self._repeats / sequences, self._recent)
        return 1.0 if share <= TOLERATED else (1.0 - share) / (1.0 - TOLERATED)

    def _cut(self) -> None:
        """Count the units that no later character can change; the last one waits."""
        text = self._carry + "".join(self._buffer)
        self._buffer.clear()
        self._size = 0
        found = _UNIT.findall(text)
        if found and text.endswith(found[-1]):
            self._carry = found.pop()
        else:
            self._carry = ""
        self._count(found)

    def _count(self, found: list[str]) -> None:
        a, b, c, last, position = self._a, self._b, self._c, self._last, self._position
        for unit in found:
            unit = unit.lower()
            position += 1
            if position > 3:
                sequence = (a, b, c, unit)
                repeated = position - last.get(sequence, -WINDOW) < WINDOW
                last[sequence] = position
                self._recent += (repeated - self._recent) * _FADE
                self._repeats += repeated
            a, b, c = b, c, unit
            if position % WINDOW == 0:
                self._last = last = {key: seen for key, seen in last.items() if position - seen < WINDOW}
        self._a, self._b, self._c, self._position = a, b, c, position


class _Scoring:
    __slots__ = ("_meters",)

    def __init__(self) -> None:
        self._meters: dict[int, LoopMeter] = {}

    def push(self, delta: Delta) -> None:
        for piece in delta.pieces:
            if piece.text:
                meter = self._meters.get(piece.index)
                if meter is None:
                    meter = self._meters[piece.index] = LoopMeter()
                meter.push(piece.text)

    def finish(self, finish: Finish | None) -> float | None:
        """Mean over the choices long enough to judge; a broken or cancelled answer is judged by what came."""
        values = [value for value in (meter.finish() for meter in self._meters.values()) if value is not None]
        return sum(values) / len(values) if values else None


class RepetitionScorer:
    """1 while repeats are ordinary, falling to 0 for a text that only repeats itself."""

    name = NAME

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def begin(self, request: Request) -> _Scoring:
        """A fresh judgement."""
        return _Scoring()


def create_scorer(settings: ScoringSettings | None = None) -> Scorer:
    """Entry point `repetition`."""
    return RepetitionScorer(weight_of(NAME, settings, 1.0))
