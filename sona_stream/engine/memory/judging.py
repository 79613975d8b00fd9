"""From candidates to the episode that acts: the gate, and which of several answers to one question.

Of two answers to the same question a correction is used before an accepted answer, then the one of the narrower
scope (a person's own before the tenant's before everybody's), then the newer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ...episodes import Scope
from . import comparison as rules
from .context import Before, agreement
from .encoding import Codes, Head, cosine
from .words import Features

__all__ = ["ACCEPTED_SHARE", "Asked", "Near", "asked_as", "choose", "closeness", "same_question"]

_WIDTH: dict[Scope, int] = {"person": 0, "tenant": 1, "global": 2}
ACCEPTED_SHARE = 0.4
"""Of an accepted answer, beside a correction's 1. With a host's usual share of 0.998 memory then puts 0.4 on a
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
    before: Before | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Near:
    """A candidate that is close."""

    slot: int
    cosine: float
    head: Head
    scope: Scope
    correction: bool
    rank: int

    @property
    def preference(self) -> tuple[bool, int, int]:
        """The smallest is used."""
        return not self.correction, _WIDTH[self.scope], -self.rank


def asked_as(head: Head) -> Asked:
    """The question that is stored there, asked again."""
    return Asked(head.features, head.contextual, head.system, _before(head))


def closeness(asked: Asked, head: Head, static: float) -> float:
    """Cosine of one candidate, 0 for one that is out of the question; `static`: of the static vectors."""
    if not _same_system(asked.system, head.system):
        return 0.0
    if asked.contextual is None or head.contextual is None:
        exact = static >= rules.STATIC_GATE and rules.nearly_exact(asked.features, head.features)
        return 1.0 if exact else 0.0
    near = cosine(asked.contextual, head.contextual)
    return near if near >= rules.ASKED_COSINE else 0.0


def choose(asked: Asked, near: Sequence[Near]) -> tuple[Near, float] | None:
    """(the one that acts, its gate): of those asked after the same was said, only the nearest question can be the
    one that is asked, and of all answers to that one the best is used.
    """
    agreed = {one.slot: agreement(asked.before, _before(one.head)) for one in near}
    there = [one for one in near if agreed[one.slot] > 0]
    ordered = sorted(there, key=lambda one: (-one.cosine, one.preference))
    if not ordered:
        return None
    nearest = ordered[0]
    same = [one for one in ordered if one is nearest or same_question(one.head, nearest.head)]
    gate = 1.0
    if not rules.nearly_exact(asked.features, nearest.head.features):
        rival = next((one.cosine for one in ordered if one not in same), 0.0)
        lead = nearest.cosine - max(rival, rules.LEAST_RIVAL)
        gate = rules.gate_of(rules.likeness(asked.features, nearest.head.features, nearest.cosine, lead))
    best = min(same, key=lambda one: one.preference)
    gate = min(gate, rules.gate_of(agreed[best.slot]))
    return (best, gate) if gate >= rules.LEAST_GATE else None


def same_question(a: Head, b: Head) -> bool:
    """Whether a newer answer to one is an answer to the other, too."""
    if not _same_system(a.system, b.system) or agreement(_before(a), _before(b)) <= 0:
        return False
    if a.contextual is None or b.contextual is None:
        return rules.nearly_exact(a.features, b.features)
    near = cosine(a.contextual, b.contextual)
    if near < rules.SAME_QUESTION:
        return False
    left, right = a.features, b.features
    return rules.nearly_exact(left, right) or all(
        rules.likeness(one, other, near, 0.0) > 0 for one, other in ((left, right), (right, left))
    )


def _before(head: Head) -> Before | None:
    return None if head.before is None else Before(Features.from_json(head.words_before), head.before)


def _same_system(a: Codes | None, b: Codes | None) -> bool:
    if a is None or b is None:
        return a is b
    return cosine(a, b) >= rules.SYSTEM_COSINE
