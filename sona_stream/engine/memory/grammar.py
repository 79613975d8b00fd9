"""What a question's small words and endings say: who does it, whose it is, when, whether it may or must be.

Two questions of the same other words differ in nothing else (`small_words` compares them). Small numbers stand for
classes of words; what the classes are about is kept as hashes, as all words are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Self

from .numerals import number_of
from .wordlists import ALIKE, EMPTY, NEGATIONS

__all__ = ["Grammar", "grammar_of"]


def _numbered(*classes: str) -> dict[str, int]:
    return {word: number for number, words in enumerate(classes, 1) for word in words.split()}


_PERSONS = _numbered("i me we us", "you", "he him", "she", "they")
"""Not "it" and "them", which stand for what was named: "the taxi, who pays for it?"."""
_OWNERS = _numbered("my mine our", "your", "his", "her", "their")
_HER = 4
_MODALS = _numbered("can may able", "must should ought", "could would might")
_MUST = 2
_PREPOSITIONS = _numbered(
    "in on at",
    "from",
    "to into",
    "by",
    "for",
    "with",
    "about",
    "up",
    "out",
    "off",
    "over",
    "under",
    "as",
    "than",
    "without",
    "of",
)
_NO_PLACE = {"has", "have", "had", "able", "ought", "need", "needs", "going"}
"""After these "to" belongs to a verb."""
_JOINING = _numbered("and", "or", "but", "if when")
_WEIGHTY = _numbered("only", "again", "also too", "exactly just")
_LETTER, _SOME, _PHRASE, _MEANS, _SO_THAT = range(20, 25)
_COUNTED = {"few", "little"}
_ASKING = _numbered("who whom", "what which", "where", "when", "why", "how", "whose")
_WHO, _WHAT, _WHEN, _HOW, _WHETHER = 1, 2, 4, 6, 8
_BE = {"is", "are", "am", "was", "were", "be", "been", "being"}
_DO = {"do", "does", "did"}
_HAVE = {"has", "have", "had"}
_AUXILIARY = _BE | _DO | _HAVE | _MODALS.keys() | {"will", "shall"}
_BEFORE_NOUNS = {"the", "a", "an", *_OWNERS}
_DEFINITE = {"the", "this", "these"}
_BETWEEN = {"the", "a", "an", "of"}
_PERFECT = 4
"""At most so many words from "have" to what it belongs to: "have the eggs been"."""


class Grammar(NamedTuple):
    """Of one question."""

    owners: tuple[int, ...]
    persons: tuple[int, ...]
    """in order"""
    modals: tuple[int, ...]
    prepositions: tuple[tuple[int, int], ...]
    """(class, the word that follows and says something, or that "which" asks for; 0 for none)"""
    heads: tuple[int, ...]
    """words that follow a preposition"""
    definite: int
    """how many of "the" and what says whose"""
    joining: tuple[int, ...]
    """conjunctions"""
    weighty: tuple[int, ...]
    """small words that say something by themselves: "only", the "a" of "vitamin a" and "a few" """
    asking: tuple[int, ...]
    noun: int
    """what "which" or "how many" asks for; 0 for none"""
    past: bool
    perfect: bool
    passive: bool
    whom: int
    """whether "who" or "what" does it (1) or not (2): "who do they teach"; 0 where neither is said"""
    small: int
    """all words that say nothing by themselves, in any order, but for articles and "of" """
    code: bool
    """Whether there is some, of which words do not say enough"""
    fronted: bool
    """something stands before the question or after it: "the taxi: who pays for it?" """

    def to_json(self) -> list[object]:
        """For `json`."""
        return list(self)

    @classmethod
    def from_json(cls, values: Sequence[object]) -> Self:
        """Inverse of it. Raises ValueError."""
        if len(values) != len(cls._fields):
            raise ValueError(f"grammar has {len(values)} values and needs {len(cls._fields)}")
        return cls(*(_tuples(value) for value in values))  # type: ignore[arg-type]


def grammar_of(words: Sequence[str], *, fronted: bool, code: bool, key: Callable[[str], int]) -> Grammar:
    """Of a question's words in order. `key`: of a word, less its ending."""
    there = set(words)
    past_ending = any(len(word) > 4 and word.endswith("ed") and _says(word) for word in words)
    at = _questions(words)
    asking = tuple(_asks(words, i) for i in at)
    if not asking and _AUXILIARY.intersection(words[:1]):
        asking = (_WHETHER,)
    hers = [i for i, word in enumerate(words) if word == "her" and not _says_next(words, i)]
    perfect = any(
        word in _HAVE and any(one == "been" or one.endswith("ed") for one in words[i + 1 : i + 1 + _PERFECT])
        for i, word in enumerate(words)
    )
    noun = next((key(noun) for i in at if (noun := _noun(words, i))), 0) if asking[:1] in ((_WHAT,), (_HOW,)) else 0
    return Grammar(
        owners=tuple(sorted(_OWNERS[word] for i, word in enumerate(words) if word in _OWNERS and i not in hers)),
        persons=tuple(_PERSONS.get(word, _HER) for i, word in enumerate(words) if word in _PERSONS or i in hers),
        modals=tuple(sorted(set(_modals(words)))),
        prepositions=tuple(
            (_PREPOSITIONS[word], _head(words, i, key) or noun)
            for i, word in enumerate(words)
            if word in _PREPOSITIONS and not _belongs(words, i)
        ),
        heads=tuple(sorted({_head(words, i, key) for i, word in enumerate(words) if word in _PREPOSITIONS})),
        definite=sum(word in _DEFINITE or (word in _OWNERS and i not in hers) for i, word in enumerate(words)),
        joining=tuple(sorted(_JOINING[word] for i, word in enumerate(words) if _joins(words, i, at))),
        weighty=tuple(sorted(_weighty(words))),
        asking=asking,
        noun=noun,
        past=bool(there & {"did", "was", "were", "had"})
        or (past_ending and not there & (_BE | {"do", "does", "can", "may", "will"})),
        perfect=perfect and not there & _DO,
        passive=past_ending and bool(there & _BE),
        whom=_does(words, at[0]) if asking[:1] in ((_WHO,), (_WHAT,)) else 0,
        small=key(" ".join(sorted(ALIKE.get(one, one) for one in words if one in EMPTY and one not in _BETWEEN))),
        code=code,
        fronted=fronted,
    )


def _says(word: str) -> bool:
    return word not in EMPTY and word.replace("'", "") not in NEGATIONS


def _says_next(words: Sequence[str], i: int) -> bool:
    return i + 1 < len(words) and words[i + 1] not in EMPTY


def _belongs(words: Sequence[str], i: int) -> bool:
    """Whether a preposition says nothing by itself: "has to", "which of the", "for how long"."""
    before, after = words[i - 1] if i else "", words[i + 1] if i + 1 < len(words) else ""
    to = words[i] == "to" and before in _NO_PLACE
    of = words[i] == "of" and before in ("which", "what", "many", "much", "all", "some")
    return to or of or (words[i] in ("for", "by") and after in ("how", "whom"))


def _head(words: Sequence[str], i: int, key: Callable[[str], int]) -> int:
    return next((key(word) for word in words[i + 1 :] if word not in EMPTY), 0)


def _questions(words: Sequence[str]) -> list[int]:
    """Places of words that ask; "when the pump stops, what ..." asks what."""
    found = [i for i, word in enumerate(words) if word in _ASKING]
    return [i for i in found if words[i] != "when" or _AUXILIARY.intersection(words[i + 1 : i + 2])] or found


def _asks(words: Sequence[str], i: int) -> int:
    kind, after = _ASKING[words[i]], list(words[i + 1 : i + 5])
    if kind == _WHAT and i and words[i - 1] in ("at", "in") and after[:1] == ["time"]:
        return _WHEN
    if kind == _WHAT and after[:1] and after[0] in _AUXILIARY and after[2:] == ["do", "to"]:  # what must I do to
        return _HOW
    return kind


def _noun(words: Sequence[str], i: int) -> str:
    after = words[i + 1 : i + 3]
    if after[:1] in (["many"], ["much"]):
        after = after[1:]
    return after[0] if after and after[0] not in EMPTY and not number_of(after[0]) else ""


def _modals(words: Sequence[str]) -> Iterable[int]:
    for i, word in enumerate(words):
        if word in _MODALS:
            yield _MODALS[word]
        elif word in (*_HAVE, "need", "needs") and words[i + 1 : i + 2] == ["to"]:
            yield _MUST


def _joins(words: Sequence[str], i: int, asking: Sequence[int]) -> bool:
    """Whether a word joins; "when" does not at the beginning, nor where it asks."""
    return words[i] in _JOINING and (words[i] != "when" or (i > 0 and i not in asking))


def _weighty(words: Sequence[str]) -> Iterable[int]:
    if words[:1] == ["what"] and words[1:2] in (["is"], ["are"]) and words[2:3] in (["a"], ["an"]):
        yield _MEANS
    for i, word in enumerate(words):
        after = words[i + 1 : i + 3]
        if word in _WEIGHTY:
            yield _WEIGHTY[word]
        elif word == "so" and after[:1] == ["that"]:
            yield _SO_THAT
        elif word == "a" and (not after or after[0] in EMPTY):  # vitamin a
            yield _LETTER
        elif word == "a" and after[0] in _COUNTED:  # "a few" are more than "few"
            yield _SOME
        elif word == "the" and i and words[i - 1] in ("in", "on", "at") and after[1:] == ["of"]:  # in the charge of
            yield _PHRASE


def _does(words: Sequence[str], i: int) -> int:
    """`Grammar.whom` of the word that asks there."""
    after, who = words[i + 1 : i + 3], _ASKING[words[i]] == _WHO
    if not after or (not who and (after[0] in _BE or (_says(after[0]) and not after[0].endswith("s")))):
        return 0
    done = len(after) > 1 and after[0] in _AUXILIARY - _BE and (after[1] in _PERSONS or after[1] in _BEFORE_NOUNS)
    return 2 if done or after[0] in _DO else 1


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
