"""Whether two questions of the same words are one, where only small words, endings and their order differ.

The encoder puts all of these together ("Who is the CEO of Lidl?", "Who was the CEO of Lidl?": 0.99), and the
regression of `comparison` learned on questions in other words. So a second one judges them, on which classes of
small words differ: "our" for "the", "items" for "an item" and "how can I" for "how do I" say the same; another
tense, person, preposition or "must" for "can" hardly ever does.

`python benchmarks/gate_fit.py --fit` fitted the constants on the part of `small_words.jsonl` that is for
fitting and on what the other regression was fitted on, by the rule that `learning_parts/gate_small.py` states.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from .grammar import Grammar

__all__ = ["BIAS", "MOST_CHANGED", "WEIGHTS", "few_changes", "small_changes", "small_odds", "swapped"]

Contents = tuple[Sequence[int], Sequence[int]]
"""Of both questions, words that say something, in order"""

MOST_CHANGED = 5
"""Small words that one has and the other lacks, both together, up to which they are compared here"""
BIAS = -9.481
WEIGHTS: Mapping[str, float] = {
    "asking": -5.131,
    "tense": -6.122,
    "modal other": -6.128,
    "modal may mine": 0.325,
    "modal may": 0.168,
    "modal mine": 1.528,
    "modal added": -2.355,
    "person generic": 1.284,
    "person other": -3.805,
    "person third": -3.530,
    "person added": -3.089,
    "owner we": 1.545,
    "owner told": 0.169,
    "owner other": -4.647,
    "preposition other": -3.852,
    "preposition added": -3.971,
    "preposition moved": -3.004,
    "joining": -6.251,
    "order fronted": 1.051,
    "order turned": -0.006,
    "order core": -1.538,
    "order phrase": 0.265,
    "order compound": -2.102,
    "order loose": -7.093,
    "noun": -7.612,
    "whom": -6.288,
    "cosine": 13.185,
    "regression": 0.510,
}
"""Of what `small_changes` says, in its order"""
_SURE = 4.0
"""Log odds of the other regression count up to here, either way."""
_MAY, _WHO, _WHERE, _HOW, _WHETHER = 1, 1, 3, 6, 8
_WE, _YOU = 1, 2


def few_changes(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether few small words differ; of `Features.words`."""
    x, y = (Counter(word for word in words if word < 0) for words in (a, b))
    return ((x - y) + (y - x)).total() <= MOST_CHANGED


def small_odds(changes: Sequence[float]) -> float:
    """Log odds that both are one question."""
    return BIAS + sum(weight * value for weight, value in zip(WEIGHTS.values(), changes, strict=True))


def swapped(a: Grammar, b: Grammar, contents: Contents) -> bool:
    """Whether all words are the same, and another one does it: "how do islands form volcanoes"."""
    return (a.small, a.fronted) == (b.small, b.fronted) and _core_differs(a, b, contents)


def small_changes(a: Grammar, b: Grammar, contents: Contents, cosine: float, regression: float) -> list[float]:
    """Values of `WEIGHTS`' names, in that order. regression: log odds of the other one."""
    turned = a.passive != b.passive
    found = (
        _modal(a, b)
        | _persons(a, b, turned=turned)
        | _prepositions(a, b, contents)
        | _order(a, b, contents, turned=turned)
    )
    less, more = _lacks(a.joining, b.joining)
    found |= {
        "asking": bool(a.asking and b.asking) and not set(a.asking) & set(b.asking),
        "tense": (a.past, a.perfect) != (b.past, b.perfect),
        "joining": less > 0 < more,
        "noun": bool(a.noun and b.noun) and a.noun != b.noun,
        "whom": a.asking[:1] == b.asking[:1] and {a.whom, b.whom} == {1, 2},
    }
    values = {name: float(value) for name, value in found.items()}
    values |= {"cosine": cosine, "regression": max(-_SURE, min(_SURE, regression))}
    return [values[name] for name in WEIGHTS]


def _modal(a: Grammar, b: Grammar) -> dict[str, bool]:
    differ = set(a.modals) ^ set(b.modals)
    both = bool(a.asking and b.asking) and _WHETHER not in (*a.asking, *b.asking)
    mine = both and (bool({_WE, _YOU} & set(a.persons) & set(b.persons)) or a.asking[0] == b.asking[0] == _WHO)
    measured = bool(a.noun and b.noun) and a.asking[:1] == b.asking[:1] == (_HOW,)  # how heavy may it be
    other = bool(differ) and ((measured and not mine) or bool(a.modals and b.modals))
    more = not other and bool(differ - {_MAY})
    return {
        "modal other": other,
        "modal may mine": not other and _MAY in differ and mine,
        "modal may": not other and _MAY in differ and not mine,
        "modal mine": more and mine,
        "modal added": more and not mine,
    }


def _persons(a: Grammar, b: Grammar, *, turned: bool) -> dict[str, bool]:
    less, more = _lacks(a.persons, b.persons)
    how = a.asking[:1] == b.asking[:1] == (_HOW,)
    generic = (
        less == more == 1 == len(a.persons)
        and {*a.persons, *b.persons} == {_WE, _YOU}
        and (how or (_general(a, b) and not (a.owners or b.owners)))
    )
    owners = set(a.owners) ^ set(b.owners)
    definite = a.definite == b.definite
    return {
        "person generic": generic,  # how can you, how can I
        "person other": (bool(less and more) and not generic) or (less == more == 0 and a.persons != b.persons),
        "person third": bool(less or more) and max((*a.persons, *b.persons)) > _YOU and not (turned and not owners),
        "person added": bool(less) != bool(more) and not turned,
        "owner we": owners == {_WE} and definite,  # "our" for "the"
        "owner told": owners == {_WE} and not definite,
        "owner other": bool(owners - {_WE}) and not generic,
    }


def _prepositions(a: Grammar, b: Grammar, contents: Contents) -> dict[str, bool]:
    less, more = _lacks([kind for kind, _ in a.prepositions], [kind for kind, _ in b.prepositions])
    ordered = tuple(contents[0]) == tuple(contents[1])
    pairs = _lacks(*([pair for pair in one.prepositions if pair[1]] for one in (a, b)))
    heads = _lacks(*({head for head in one.heads if head} for one in (a, b)))
    return {
        "preposition other": bool(less and more) and ordered,
        "preposition added": bool(less) != bool(more) and ordered,
        "preposition moved": (all(pairs) and not (less and more)) or all(heads),
    }


def _order(a: Grammar, b: Grammar, contents: Contents, *, turned: bool) -> dict[str, bool]:
    differs = tuple(contents[0]) != tuple(contents[1])
    fronted = a.fronted != b.fronted
    plain = differs and not fronted and not turned
    core = _core_differs(a, b, contents)
    compound = sorted(a.prepositions) != sorted(b.prepositions) and _compound(a, b, contents)
    return {
        "order fronted": differs and fronted,
        "order turned": differs and turned and not fronted,
        "order core": plain and core,
        "order phrase": plain and not core and sorted(a.prepositions) == sorted(b.prepositions),
        "order compound": plain and not core and compound,
        "order loose": plain and not core and not compound and sorted(a.prepositions) != sorted(b.prepositions),
    }


def _compound(a: Grammar, b: Grammar, contents: Contents) -> bool:
    """Whether what follows a preposition in one stands before what that belongs to in the other: "the
    password of the printer", "the printer password".
    """
    ways = ((a, b, contents), (b, a, contents[::-1]))
    return any(
        (head, word) in itertools.pairwise(there)
        for one, other, (here, there) in ways
        for word, head in itertools.pairwise(here)
        if head in {each for _, each in set(one.prepositions) - set(other.prepositions)}
    )


def _general(a: Grammar, b: Grammar) -> bool:
    """Whether "you" may be anybody: "where do you plant tulips", "can you freeze soup"."""
    where = a.asking[:1] == b.asking[:1] == (_WHERE,)
    return where or (a.asking == b.asking == (_WHETHER,) and _MAY in a.modals and _MAY in b.modals)


def _core_differs(a: Grammar, b: Grammar, contents: Contents) -> bool:
    """Whether what follows no preposition is in another order."""
    core_a, core_b = (
        [word for word in words if word not in one.heads] for one, words in zip((a, b), contents, strict=True)
    )
    return [word for word in core_a if word in core_b] != [word for word in core_b if word in core_a]


def _lacks(a: Iterable[object], b: Iterable[object]) -> tuple[int, int]:
    """(how many of a lack in b, of b in a)"""
    x, y = Counter(a), Counter(b)
    return (x - y).total(), (y - x).total()
