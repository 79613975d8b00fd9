"""From candidates to the few episodes that act: the gate on each, and which of several answers to one question.

Of two answers to the same question a correction is used before an accepted answer, then the one of the narrower
scope (a person's own before the tenant's before everybody's), then the newer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ...episodes import Scope
from . import comparison as rules
from .encoding import Codes, Head, cosine
from .words import Features

__all__ = ["ACCEPTED_SHARE", "Asked", "Judged", "closeness", "resolve", "same_question"]

_WIDTH: dict[Scope, int] = {"person": 0, "tenant": 1, "global": 2}
MARGIN = 0.05
"""An episode whose closeness is this much below the nearest one's does not act beside it."""
MOST = 4
"""Episodes that act on one request."""
ACCEPTED_SHARE = 0.4
"""Of an accepted answer, beside a correction's 1. With a host's usual share of 0.9 memory then puts 0.36 on a
token: what the model is sure of, it says, and so it can still learn to say it better; where it wavers, it keeps to
what was found good.
"""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """The question of a request."""

    features: Features
    contextual: Codes | None
    system: Codes | None
    """None: no system prompt"""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A candidate that passed."""

    slot: int
    closeness: float
    gate: float
    head: Head
    scope: Scope
    correction: bool
    rank: int

    @property
    def preference(self) -> tuple[bool, int, int]:
        """The smallest is used."""
        return not self.correction, _WIDTH[self.scope], -self.rank


def closeness(asked: Asked, head: Head, static: float) -> tuple[float, float]:
    """(cosine less penalties, gate) of one candidate, 0 where it does not act; `static`: of the static vectors."""
    if not _same_system(asked.system, head.system):
        return 0.0, 0.0
    if asked.contextual is None or head.contextual is None:
        if static < rules.STATIC_GATE or not rules.nearly_exact(asked.features, head.features):
            return 0.0, 0.0
        return _gated(static, rules.STATIC_GATE)
    near = cosine(asked.contextual, head.contextual)
    if near < rules.GATE:
        return 0.0, 0.0
    return _gated(near - rules.penalty_of(rules.differences(asked.features, head.features)), rules.GATE)


def same_question(a: Head, b: Head) -> bool:
    """Whether a newer answer to one is an answer to the other, too."""
    if not _same_system(a.system, b.system):
        return False
    left, right = a.features, b.features
    if a.contextual is None or b.contextual is None:
        return rules.nearly_exact(left, right)
    near = cosine(a.contextual, b.contextual)
    return near >= rules.SAME_QUESTION and (
        near - rules.penalty_of(rules.differences(left, right)) >= rules.SAME_QUESTION
    )


def resolve(judged: Iterable[Judged]) -> list[Judged]:
    """Those that act, the nearest first; of answers to the same question one."""
    kept: list[Judged] = []
    for one in sorted(judged, key=lambda each: (-each.closeness, each.preference)):
        if kept and one.closeness < kept[0].closeness - MARGIN:
            break
        rivals = [i for i, other in enumerate(kept) if same_question(one.head, other.head)]
        if not rivals:
            kept.append(one)
        elif one.preference < kept[rivals[0]].preference:
            kept[rivals[0]] = one
    return kept[:MOST]


def _gated(near: float, threshold: float) -> tuple[float, float]:
    gate = rules.gate_of(near, threshold)
    return (near, gate) if gate >= rules.LEAST_GATE else (0.0, 0.0)


def _same_system(a: Codes | None, b: Codes | None) -> bool:
    if a is None or b is None:
        return a is b
    return cosine(a, b) >= rules.SYSTEM_COSINE
