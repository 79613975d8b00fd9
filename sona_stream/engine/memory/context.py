"""Whether two conversations had come to the same before their last questions were asked.

"Who has the keys?" is one question after a word on the showroom in Aarhus and another after one on Ghent. Where a
question may mean what was said before it (`questions.question_of`), the earlier user messages of both
conversations are compared, too: numbers, signs and opposites that differ let nothing pass, and a logistic
regression on the contextual encoder's cosine and the words of both says whether they set the same scene. It can
only take away from what the questions themselves let pass.

Where one side has nothing before it, or nothing is known of it (a first message, an episode that was stored before
this was kept, no contextual encoder), nothing is taken away: a correction given on a first message acts in a later
turn, too, wherever the question is the same.

`python benchmarks/gate_fit.py --fit` fitted the constants on `gate_training_turns.jsonl`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from .comparison import differences, overlap, same_said
from .encoding import Codes, cosine
from .words import Features

__all__ = ["BIAS", "VETOES", "WEIGHTS", "Before", "agreement", "evidence"]

VETOES = frozenset({"numbers", "signs", "opposites"})
BIAS = -5.523
WEIGHTS: Mapping[str, float] = {
    "cosine cosine": 15.748,
    "order order": -5.682,
    "shared": 5.465,
    "cosine common": -10.467,
    "names": -4.515,
}
"""Of what `evidence` says, in its order"""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Before:
    """What was said before a question."""

    features: Features
    contextual: Codes


def agreement(a: Before | None, b: Before | None) -> float:
    """Log odds that both mean the same; inf where one is not known or both say the same, -inf after a veto."""
    if a is None or b is None or same_said(a.features, b.features):
        return math.inf
    found = differences(a.features, b.features)
    if found & VETOES:
        return -math.inf
    values = evidence(a.features, b.features, cosine(a.contextual, b.contextual), found)
    return BIAS + sum(weight * value for weight, value in zip(WEIGHTS.values(), values, strict=True))


def evidence(a: Features, b: Features, near: float, found: frozenset[str]) -> list[float]:
    """Values of `WEIGHTS`' names, in that order and the same either way round. ``near``: cosine of the contextual
    vectors; ``found``: the `differences`.
    """
    one, other = overlap(a, b), overlap(b, a)
    order = (one["order"] + other["order"]) / 2
    shared = max(one["known"], one["covered"])
    return [near * near, order * order, shared, near * one["in common"], float("names" in found)]
