"""Whether two questions are the same: the second stage of recall, and what tells an older answer from a newer one.

An encoder places "over 30 days" and "under 30 days" together (0.99), and some paraphrases no nearer (0.5) than
what has only its form in common. So of the stored questions the nearest by the contextual encoder is taken, and a
logistic regression says whether it is the same: on its cosine, its lead over the next one, the words of both and
their order; where only small words differ, another one says it (`small_words`). A few differences let nothing pass.
Without a contextual vector on either side only questions of the same wording (`wording`) are let through.

`python benchmarks/gate_fit.py --fit` fitted the constants, by the rule that `learning_parts/gate_fit.py` states, on
the half of the benchmark's questions that is for fitting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import SequenceMatcher

from .grammar import Grammar
from .small_words import few_changes, small_changes, small_odds, swapped
from .words import EARLIER, PERSONS, UNSPACED, WORDED, WORDS_IN_ORDER, Features

__all__ = [
    "ASKED_COSINE",
    "LEAST_GATE",
    "LEAST_RIVAL",
    "RECALL_COSINE",
    "SAME_QUESTION",
    "STATIC_GATE",
    "STEEPNESS",
    "SYSTEM_COSINE",
    "VETOES",
    "WEIGHTS",
    "changed",
    "differences",
    "evidence",
    "gate_of",
    "likeness",
    "nearly_exact",
    "overlap",
    "regressed",
    "same_said",
    "same_text",
]

RECALL_COSINE = 0.3
"""Static cosine from which an episode is a candidate: the highest that loses no paraphrase."""
ASKED_COSINE = 0.3
"""Contextual cosine below which none is looked at again."""
STATIC_GATE = 0.8
"""Static cosine from which questions of nearly the same words are the same, where there is no contextual one"""
LEAST_RIVAL = 0.4
"""The next nearest question is taken to be at least so near: a memory of one episode knows no better."""
STEEPNESS = 4.0
LEAST_GATE = 0.5
"""Below it an episode does not act at all."""
SAME_QUESTION = 0.92
"""Contextual cosine from which two stored questions may be one, so that the newer answer stands for both."""
SYSTEM_COSINE = 0.97
"""Static cosine from which two system prompts are one: they hold dates, say."""

VETOES = frozenset({"numbers", "signs", "opposites", "roles", "cut", "apart", "more", "unread"})
"""Differences after which two questions are not the same, whatever else is alike"""
BIAS = -6.830
WEIGHTS: Mapping[str, float] = {
    "cosine": 6.487,
    "lead": 5.327,
    "order": 0.331,
    "exchanged": -2.375,
    "changed": 2.288,
    "length": 2.275,
    "stored length": -1.871,
    "known": 1.071,
    "covered": -0.986,
    "in common": 0.105,
    "negation": -0.628,
    "names": -1.216,
    "asking": -0.782,
    "cosine cosine": 3.380,
    "cosine order": -3.453,
    "cosine in common": -3.227,
    "order order": -6.201,
    "order length": 0.059,
}
"""Of what `evidence` says, in its order; two names are their product"""

_LITTLE, _FEW = 2, 3
"""Different words that say something; words. The more of them, the better knows the encoder."""
_WORDS = 10.0
"""Numbers of words are counted in tens, so that all evidence is of about one size."""


def differences(a: Features, b: Features) -> frozenset[str]:
    """Names of the differences that these two questions have; none for the same words.

    Numbers, signs, names, roles, opposites: each question has one that the other lacks. Cut: a text of which
    the regression does not see all, so that only the same one can be meant. Apart: next to nothing is said, and
    nothing of it by both. More: one asks for something besides. Unread: each says what the other does not, in a
    script of which the encoder knows next to nothing.
    """
    if same_text(a, b):
        return frozenset()
    found = {
        "numbers": _each_lacks(frozenset(a.numbers), frozenset(b.numbers)),
        "signs": _each_lacks(a.signs, b.signs),
        "opposites": _opposed(a, b),
        "roles": _swapped(a, b) or _turned_round(a, b),
        "negation": a.negated != b.negated,
        "names": bool(a.names - set(b.content) and b.names - set(a.content)),
        "cut": a.cut or b.cut or max(len(a.words), len(b.words)) >= WORDS_IN_ORDER,
        "apart": _apart(a, b),
        "more": _asks_more(a, b) or _asks_more(b, a),
        "unread": _unread(a, b),
        "asking": bool(a.asking and b.asking and a.asking.isdisjoint(b.asking)),
    }
    return frozenset(name for name, there in found.items() if there)


def evidence(asked: Features, stored: Features, cosine: float, lead: float, found: frozenset[str]) -> list[float]:
    """Values of `WEIGHTS`' names, in that order. ``found``: the `differences`."""
    plain = overlap(asked, stored)
    plain |= {"cosine": cosine, "lead": lead}
    plain |= {name: float(name in found) for name in ("negation", "names", "asking")}
    return [_product(plain, name) for name in WEIGHTS]


def likeness(asked: Features, stored: Features, cosine: float, lead: float) -> float:
    """Log odds, by the fitted weights, that both are one question; -inf after a veto."""
    found = differences(asked, stored)
    if found & VETOES:
        return -math.inf
    odds = regressed(asked, stored, cosine, lead, found)
    small = changed(asked, stored, cosine, odds)
    return odds if small is None else small_odds(small)


def regressed(asked: Features, stored: Features, cosine: float, lead: float, found: frozenset[str]) -> float:
    """Log odds by `WEIGHTS`. ``found``: the `differences`."""
    values = evidence(asked, stored, cosine, lead, found)
    return BIAS + sum(weight * value for weight, value in zip(WEIGHTS.values(), values, strict=True))


def changed(a: Features, b: Features, cosine: float, odds: float) -> list[float] | None:
    """`small_words.small_changes`; None where more than small words may differ."""
    both = _small(a, b)
    return None if both is None else small_changes(*both, (a.content, b.content), cosine, odds)


def same_text(a: Features, b: Features) -> bool:
    """Whether two texts are one but for white space, marks at the end, and case where it means nothing. Of what was
    stored before signs counted, only the words are known; of what is cut, not even those.
    """
    if a.version != b.version and EARLIER in (a.version, b.version):
        return not (a.cut or b.cut) and a.plain == b.plain
    return a.exact == b.exact


def nearly_exact(a: Features, b: Features) -> bool:
    """Whether two questions are of the same wording; of what was stored before it was kept: have the same words."""
    if same_text(a, b):
        return True
    others = a.pictures and b.pictures and a.pictures != b.pictures
    if a.cut or b.cut or others or _opposed(a, b):
        return False
    if min(a.version, b.version) >= WORDED:
        return a.wording == b.wording
    words = [tuple(map(abs, one.words)) for one in (a, b)]
    return words[0] == words[1] and 0 < len(words[0]) < WORDS_IN_ORDER


def same_said(a: Features, b: Features) -> bool:
    """Whether two texts have the same words that say something, in the same order; less than `nearly_exact`."""
    if same_text(a, b):
        return True
    if a.cut or b.cut or a.content != b.content or a.negated != b.negated or _each_lacks(a.pictures, b.pictures):
        return False
    numbers = (
        (a.numbers, b.numbers) if EARLIER not in (a.version, b.version) else (sorted(a.numbers), sorted(b.numbers))
    )
    return numbers[0] == numbers[1] and a.asking == b.asking and not _opposed(a, b) and a.roles == b.roles


def gate_of(odds: float) -> float:
    """In [0, 1]: 0.5 where `likeness` is 0."""
    return 0.0 if odds < -50 else 1.0 / (1.0 + math.exp(-STEEPNESS * odds))


def overlap(asked: Features, stored: Features) -> dict[str, float]:
    """What words and their order say."""
    a, b = _said(asked), _said(stored)
    shared, one, other = len(a & b), set(asked.words), set(stored.words)
    order = SequenceMatcher(None, asked.words, stored.words, autojunk=False).ratio()
    exchanged, changed = _exchanged(asked.words, stored.words)
    return {
        "order": order,
        "exchanged": exchanged,
        "changed": changed / _WORDS,
        "length": len(asked.words) / _WORDS,
        "stored length": len(stored.words) / _WORDS,
        "known": shared / max(1, len(a)),
        "covered": shared / max(1, len(b)),
        "in common": len(one & other) / max(1, len(one | other)),
    }


def _small(a: Features, b: Features) -> tuple[Grammar, Grammar] | None:
    """Where at least two words say something, all of these are the same, and little else differs. Not for code, nor
    where another ending may make a name of a word ("Windows").
    """
    if a.grammar is None or b.grammar is None or a.grammar.code or b.grammar.code:
        return None
    if a.grammar.weighty != b.grammar.weighty:
        return None
    others = a.negated != b.negated or a.numbers != b.numbers or a.signs != b.signs or a.pictures != b.pictures
    named = a.names != b.names and _endings_differ(a, b)
    unspaced = any(dimension == UNSPACED for one in (a, b) for dimension, _ in one.sides)
    said = _said(a)
    if others or named or unspaced or len(said) < _LITTLE or said != _said(b) or not few_changes(a.words, b.words):
        return None
    return a.grammar, b.grammar


def _endings_differ(a: Features, b: Features) -> bool:
    return {word for word in a.words if word > 0} != {word for word in b.words if word > 0}


def _turned_round(a: Features, b: Features) -> bool:
    """Whether all is the same, and another one does it: "how do islands form volcanoes"."""
    both = _small(a, b)
    return both is not None and swapped(*both, (a.content, b.content))


def _said(features: Features) -> frozenset[int]:
    return frozenset((*features.content, *features.numbers))


def _exchanged(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[float, int]:
    """(share of the words around one place, where both say something else there; words of that place)."""
    least = min(len(a), len(b))
    start = next((i for i in range(least) if a[i] != b[i]), least)
    end = next((i for i in range(least - start) if a[-1 - i] != b[-1 - i]), least - start)
    there_a, there_b = a[start : len(a) - end], b[start : len(b) - end]
    both = any(word > 0 for word in there_a) and any(word > 0 for word in there_b)
    share = (start + end) / max(1, len(a), len(b))
    return (share if both else 0.0), max(len(there_a), len(there_b))


def _product(values: Mapping[str, float], name: str) -> float:
    if name in values:
        return values[name]
    first = next(one for one in values if name.startswith(f"{one} ") and name[len(one) + 1 :] in values)
    return values[first] * values[name[len(first) + 1 :]]


def _opposed(a: Features, b: Features) -> bool:
    only_a, only_b = a.sides - b.sides, b.sides - a.sides
    apart = {dimension for dimension, _ in only_a} & {dimension for dimension, _ in only_b}
    content_a, content_b = set(a.content), set(b.content)
    # "who pays me", "who do I pay": in other words as well, "who teaches us" may be "of whom do we learn"
    if apart - PERSONS or (apart and content_a == content_b):
        return True
    return bool((a.stripped & content_b) - content_a or (b.stripped & content_a) - content_b)


def _apart(a: Features, b: Features) -> bool:
    said, words = (_said(a), _said(b)), (a.words, b.words)
    little = max(map(len, said)) <= _LITTLE and min(map(len, words)) <= _FEW
    return little and said[0].isdisjoint(said[1])


def _unread(a: Features, b: Features) -> bool:
    scripts = ({dimension for dimension, _ in one.sides} for one in (a, b))
    return all(UNSPACED in one for one in scripts) and _each_lacks(_said(a), _said(b))


def _asks_more(a: Features, b: Features) -> bool:
    """Whether a has a request of which b says no more than half."""
    said = _said(b)
    return any(2 * len(said.intersection(words)) <= len(set(words)) for words in a.requests if words)


def _each_lacks(a: frozenset[int], b: frozenset[int]) -> bool:
    return bool(a - b and b - a)


def _swapped(a: Features, b: Features) -> bool:
    """One word in another role: "from Paris to Rome", "from Rome to Paris"; "feet to miles", "miles to feet"."""
    roles_a, roles_b = ({word: role for role, word in one.roles} for one in (a, b))
    if any(roles_b.get(word, role) != role for word, role in roles_a.items()):
        return True
    only_a, only_b = a.roles - b.roles, b.roles - a.roles
    moved_a = {role for role, word in only_a if word in b.content}
    return bool(moved_a & {role for role, word in only_b if word in a.content})
