"""Whether two questions are the same: the second stage of recall, and what tells an older answer from a newer one.

    g = sigmoid(STEEPNESS (cos - penalties - GATE))

cos is the contextual encoder's. Encoders place "over 30 days" and "under 30 days" together (0.99), so differences
of words are taken off; those of weight 1 let nothing pass. Without a contextual vector on either side only
questions that are the same but for case, endings and words that say nothing are let through.

The constants are starting points, to be fitted on questions written before: `benchmarks/learning.py`.
"""

from __future__ import annotations

import math

from .words import Features

__all__ = [
    "GATE",
    "LEAST_GATE",
    "PENALTIES",
    "RECALL_COSINE",
    "SAME_QUESTION",
    "STATIC_GATE",
    "STEEPNESS",
    "SYSTEM_COSINE",
    "differences",
    "gate_of",
    "nearly_exact",
    "penalty_of",
]

RECALL_COSINE = 0.6
"""Static cosine from which an episode is a candidate. Paraphrases were at 0.82 and above."""
GATE = 0.8
"""Contextual cosine at which the gate is one half: near misses were at 0.66, paraphrases at 0.93."""
STATIC_GATE = 0.8
"""The same of the static cosine, for questions that are nearly the same words"""
STEEPNESS = 30.0
LEAST_GATE = 0.5
"""Below it an episode does not act at all."""
SAME_QUESTION = 0.92
"""Contextual cosine less penalties from which two questions are one, so that the newer answer stands for both."""
SYSTEM_COSINE = 0.97
"""Static cosine from which two system prompts are one: they hold dates, say."""

PENALTIES = {
    "numbers": 1.0,
    "negation": 1.0,
    "opposites": 1.0,
    "names": 1.0,
    "roles": 1.0,
    "asking": 0.15,
    "one side": 0.03,
    "one name": 0.1,
    "substitution": 0.08,
}
"""What each difference takes off the cosine. Names: each question has one that the other lacks. Substitution: the
same content words but for one place."""


def differences(a: Features, b: Features) -> frozenset[str]:
    """Names of `PENALTIES` that these two questions have; none for the same words."""
    if a.exact == b.exact:
        return frozenset()
    found = {
        "numbers": a.numbers != b.numbers,
        "negation": a.negated != b.negated,
        "opposites": _opposed(a, b),
        "names": _each_lacks(a.names - set(b.content), b.names - set(a.content)),
        "roles": _swapped(a, b),
        "asking": bool(a.asking and b.asking and a.asking.isdisjoint(b.asking)),
        "one side": a.sides != b.sides,
        "one name": bool(a.names - set(b.content) or b.names - set(a.content)),
        "substitution": _substituted(a.content, b.content),
    }
    return frozenset(name for name, there in found.items() if there)


def penalty_of(found: frozenset[str]) -> float:
    """What these differences take off the cosine, in all."""
    return sum(PENALTIES[name] for name in found)


def nearly_exact(a: Features, b: Features) -> bool:
    """Whether two questions say the same words in the same order, words that say nothing and endings left out."""
    alike = a.content == b.content and a.numbers == b.numbers and a.negated == b.negated
    return a.exact == b.exact or (alike and a.asking == b.asking and a.sides == b.sides and a.roles == b.roles)


def gate_of(cosine: float, threshold: float) -> float:
    """In (0, 1)."""
    return 1.0 / (1.0 + math.exp(-STEEPNESS * (cosine - threshold)))


def _opposed(a: Features, b: Features) -> bool:
    only_a, only_b = a.sides - b.sides, b.sides - a.sides
    if {dimension for dimension, _ in only_a} & {dimension for dimension, _ in only_b}:
        return True
    content_a, content_b = set(a.content), set(b.content)
    return bool((a.stripped & content_b) - content_a or (b.stripped & content_a) - content_b)


def _each_lacks(only_a: frozenset[int], only_b: frozenset[int]) -> bool:
    return bool(only_a and only_b)


def _swapped(a: Features, b: Features) -> bool:
    """One word in another role: "from Paris to Rome", "from Rome to Paris"; "feet to miles", "miles to feet"."""
    roles_a, roles_b = ({word: role for role, word in one.roles} for one in (a, b))
    if any(roles_b.get(word, role) != role for word, role in roles_a.items()):
        return True
    only_a, only_b = a.roles - b.roles, b.roles - a.roles
    moved_a = {role for role, word in only_a if word in b.content}
    return bool(moved_a & {role for role, word in only_b if word in a.content})


def _substituted(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return len(a) == len(b) > 1 and sum(x != y for x, y in zip(a, b, strict=True)) == 1
