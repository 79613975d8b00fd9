"""What of a question's words the gate looks at: small, comparable without the text, kept beside its vectors.

Words are kept as hashes keyed with a secret of the state folder, so that an episode stored without its text does
not show it. The lists behind this are English; of other languages numbers, identity and order of words count.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Sequence

from .tokens import earlier_words, split, whole_text
from .wordlists import CLASSES, EMPTY, NEGATIONS, NUMBER_WORDS, PREFIXES

__all__ = ["WORDS_IN_ORDER", "Features", "Reader", "stem"]

_ASKING = ("who", "when", "where", "why", "how")
_MEASURES = {"many", "much", "long", "old", "far", "often", "tall", "big", "fast", "high", "deep", "heavy", "large"}
_SCALES = {"hundred", "thousand", "million", "billion"}
_DIRECTIONS = {"from", "to", "into", "than"}
WORDS_IN_ORDER = 64
"""So many of a question's first words are kept in order."""
_EARLIER, _SIGNED = 1, 2
"""Versions: before signs counted, and since"""
_LONGEST_FACTOR = 15
"""Digits of what may stand before "million": nobody writes more, and integers have a longest text."""


@dataclasses.dataclass(frozen=True, slots=True)
class Features:
    """Of one question. Numbers in tuples are keyed hashes of words."""

    exact: int
    """of the whole text but for case, white space and marks at its end; of episodes that were stored before signs
    counted: `plain`
    """
    words: tuple[int, ...]
    """all words in order, the first 64, those that say nothing by themselves negative; none of episodes that were
    stored before this was kept"""
    content: tuple[int, ...]
    """words that say something, in order"""
    names: frozenset[int]
    """those of them written as names inside a sentence"""
    numbers: tuple[int, ...]
    """in order; sorted, of episodes that were stored before signs counted"""
    negated: bool
    asking: frozenset[str]
    """who, when, where, why, how, or how with a measure; what and which ask for anything"""
    sides: frozenset[tuple[int, int]]
    """(dimension, side) of `wordlists.CLASSES`"""
    stripped: frozenset[int]
    """words without a prefix of negation"""
    roles: frozenset[tuple[str, int]]
    """(from | to | into | than, the word that follows)"""
    signs: frozenset[int] = frozenset()
    """operators and the like"""
    pictures: frozenset[int] = frozenset()
    """emoji and such"""
    plain: int = 0
    """of all words in order without most signs: all that is known of the text of earlier episodes"""
    cut: bool = False
    """Whether all but `exact` is of the two ends of a longer text"""
    version: int = _SIGNED

    def to_json(self) -> bytes:
        """Small, and the same on every platform."""
        values = [
            self.exact,
            self.content,
            sorted(self.names),
            self.numbers,
            self.negated,
            sorted(self.asking),
            sorted(self.sides),
            sorted(self.stripped),
            sorted(self.roles),
            self.words,
        ]
        if self.version != _EARLIER:
            values += [sorted(self.signs), sorted(self.pictures), self.plain, self.cut]
        return json.dumps(values, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Features:
        """Inverse of `to_json`. Raises ValueError."""
        exact, content, names, numbers, negated, asking, sides, stripped, roles, *later = json.loads(data)
        words, signs, pictures, plain, cut = later + [[], [], [], exact, False][len(later) :]
        return cls(
            exact=exact,
            words=tuple(words),
            content=tuple(content),
            names=frozenset(names),
            numbers=tuple(numbers),
            negated=negated,
            asking=frozenset(asking),
            sides=frozenset((a, b) for a, b in sides),
            stripped=frozenset(stripped),
            roles=frozenset((a, b) for a, b in roles),
            signs=frozenset(signs),
            pictures=frozenset(pictures),
            plain=plain,
            cut=cut,
            version=_SIGNED if len(later) > 1 else _EARLIER,
        )


def stem(word: str) -> str:
    """Without the commonest English endings: enough to tell "orders" from "order" no more."""
    for ending, least in (("ing", 6), ("ed", 5)):
        if word.endswith(ending) and len(word) >= least:
            root = word[: -len(ending)]
            doubled = len(root) > 3 and root[-1] == root[-2] and root[-1] not in "lsz"
            return root[:-1] if doubled else root.removesuffix("e")
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("s") and len(word) > 3 and not word.endswith(("ss", "us", "is")):
        return word[:-1].removesuffix("e")
    return word.removesuffix("e") if len(word) > 3 else word


class Reader:
    """Makes features of texts, under one secret."""

    def __init__(self, secret: bytes) -> None:
        self._key = secret[:64]

    def read(self, text: str) -> Features:
        """Of one question."""
        words, signs, pictures, cut = split(text)
        plain = [word for word, _ in words]
        said = [(word, named) for word, named in words if word not in EMPTY and not _number(word)]
        said = [(word, named) for word, named in said if word.replace("'", "") not in NEGATIONS]
        return Features(
            exact=self._hash("\0" + whole_text(text)),
            words=tuple(self._signed(word) for word in plain[:WORDS_IN_ORDER]),
            content=tuple(self._hash(stem(word)) for word, _ in said),
            names=frozenset(self._hash(stem(word)) for word, named in said if named),
            numbers=tuple(map(self._hash, _numbers(plain))),
            negated=any(word.replace("'", "") in NEGATIONS or word.endswith("n't") for word in plain),
            asking=frozenset(_asking(plain)),
            sides=frozenset(side for word in plain for side in CLASSES.get(word, ())),
            stripped=frozenset(self._hash(stem(rest)) for word, _ in said for rest in _stripped(word)),
            roles=frozenset(self._roles(plain)),
            signs=frozenset(map(self._hash, signs)),
            pictures=frozenset(map(self._hash, pictures)),
            plain=0 if cut else self._hash(" ".join(earlier_words(text))),
            cut=cut,
        )

    def _roles(self, words: Sequence[str]) -> Iterable[tuple[str, int]]:
        for i, word in enumerate(words):
            if word in _DIRECTIONS:
                goal = next((one for one in words[i + 1 : i + 4] if one not in EMPTY), None)
                if goal is not None:
                    yield word, self._hash(stem(goal))

    def _signed(self, word: str) -> int:
        code = self._hash(word)
        return -code if word in EMPTY else code

    def _hash(self, word: str) -> int:
        data = word.encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(data, key=self._key, digest_size=6).digest(), "little")


def _number(word: str) -> str:
    """Its value as digits; empty for a word that is no number."""
    if word[0] == "." and word[1:].isdecimal():
        word = f"0{word}"
    if not word[0].isdecimal():
        return NUMBER_WORDS.get(word, "")
    digits = re.sub(r",(?=\d{3}\b)", "", word)
    return digits.rstrip("0").rstrip(".") if re.fullmatch(r"\d+\.\d+", digits) else digits.lstrip("0") or "0"


def _numbers(words: Sequence[str]) -> Iterable[str]:
    """Values of all; "fifty thousand" is one, and so is "two million"."""
    last = ""
    for word in words:
        value = _number(word)
        if word in _SCALES and last.isdecimal() and len(last) <= _LONGEST_FACTOR:
            last = str(int(last) * int(value))
            continue
        if last:
            yield last
        last = value
    if last:
        yield last


def _asking(words: Sequence[str]) -> Iterable[str]:
    for i, word in enumerate(words):
        if word in ("whom", "whose"):
            yield "who"
        elif word == "how" and i + 1 < len(words) and words[i + 1] in _MEASURES:
            yield f"how {words[i + 1]}"
        elif word in _ASKING:
            yield word


def _stripped(word: str) -> Iterable[str]:
    return (word[len(prefix) :] for prefix in PREFIXES if word.startswith(prefix) and len(word) >= len(prefix) + 4)
