"""What of a question's words the gate looks at: small, comparable without the text, kept beside its vectors.

Words are kept as hashes keyed with a secret of the state folder, so that an episode stored without its text does
not show it. The lists behind this are English; of other languages numbers, identity and order of words count, and
of Chinese and Japanese what negates.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Sequence

from .grammar import Grammar, grammar_of
from .numerals import number_of, numbers_of
from .sentences import requests
from .tokens import Tokens, earlier_words, split, unspaced, whole_text
from .wording import bare, code_in, fronted, wording
from .wordlists import CLASSES, EMPTY, NEGATIONS, PREFIXES

__all__ = ["EARLIER", "PERSONS", "UNSPACED", "WORDED", "WORDS_IN_ORDER", "Features", "Reader", "stem"]

_ASKING = ("who", "when", "where", "why", "how")
_MEASURES = {"many", "much", "long", "old", "far", "often", "tall", "big", "fast", "high", "deep", "heavy", "large"}
_DIRECTIONS = {"from", "to", "into", "than"}
WORDS_IN_ORDER = 64
"""So many of a question's first words are kept in order."""
EARLIER, _SIGNED, WORDED, _NEWEST = 1, 2, 3, 4
"""Versions: before signs counted, since, since the wording is kept, and since the grammar is"""
_ADDED = {EARLIER: 0, _SIGNED: 4, WORDED: 6, _NEWEST: 7}
"""Values that were added since the first"""
UNSPACED = -1
"""Dimension of `Features.sides` that texts in scripts without spaces have"""
_CASES = (("i", "me"), ("we", "us"), ("he", "him"), ("they", "them"))
PERSONS = frozenset(range(UNSPACED - len(_CASES), UNSPACED))
"""Dimensions of `Features.sides` that say whether somebody does something or has it done to them"""
_DOES = {word: (UNSPACED - 1 - i, side) for i, case in enumerate(_CASES) for side, word in enumerate(case)}
_NOT = re.compile(
    "[\u4e0d\u6ca1\u6c92\u7121\u65e0\u975e\u672a\u52ff\u5426\u522b\u5225]|\u306a[\u3044\u304b\u304f\u3057]|\u305b\u3093|\u305a\u306b|\u0e44\u0e21\u0e48"
)
"""In Chinese, Japanese and Thai; part of other words, too, after which only the same words are the same question"""


@dataclasses.dataclass(frozen=True, slots=True)
class Features:
    """Of one question. Numbers in tuples are keyed hashes of words."""

    exact: int
    """of the whole text but for white space, marks at its end and case where it means nothing; of episodes that
    were stored before signs counted: `plain`
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
    """(dimension, side) of `wordlists.CLASSES`; of pronouns, "I" or "me"; of scripts without spaces, whether
    something is negated; (word, how it is written) of what its case tells apart
    """
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
    wording: int = 0
    """of what `wording.wording` leaves of it"""
    requests: tuple[tuple[int, ...], ...] = ()
    """what each says, where there are several"""
    grammar: Grammar | None = None
    """of its small words; none of long texts"""
    version: int = _NEWEST

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
        values += [sorted(self.signs), sorted(self.pictures), self.plain, self.cut, self.wording, self.requests]
        values.append(self.grammar and self.grammar.to_json())
        values = values[: len(values) - _ADDED[_NEWEST] + _ADDED[self.version]]
        return json.dumps(values, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Features:
        """Inverse of `to_json`. Raises ValueError."""
        exact, content, names, numbers, negated, asking, sides, stripped, roles, *later = json.loads(data)
        added = max(0, len(later) - 1)
        words, signs, pictures, plain, cut, said, requests, grammar = (
            later + [[], [], [], exact, False, 0, [], None][len(later) :]
        )
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
            wording=said,
            requests=tuple(map(tuple, requests)),
            grammar=grammar and Grammar.from_json(grammar),
            version=next(version for version, count in _ADDED.items() if added <= count),
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
        text = text.strip()
        tokens = split(text)
        words, signs, pictures, _, cut = tokens
        plain = [word for word, _ in words]
        said = list(_saying(words))
        capitals = [one for one in (*tokens.cased, *filter(str.isupper, plain)) if not one.islower()]
        return Features(
            exact=self._hash("\0" + "\0".join([whole_text(text), *capitals])),
            words=tuple(self._signed(word) for word in plain[:WORDS_IN_ORDER]),
            content=tuple(self._hash(stem(word)) for word, _ in said),
            names=frozenset(self._hash(stem(word)) for word, named in said if named),
            numbers=tuple(map(self._hash, numbers_of(plain))),
            negated=any(word.replace("'", "") in NEGATIONS or word.endswith("n't") for word in plain)
            or _NOT.search(text) is not None,
            asking=frozenset(_asking(plain)),
            sides=frozenset(self._sides(text, tokens)),
            stripped=frozenset(self._hash(stem(rest)) for word, _ in said for rest in _stripped(word)),
            roles=frozenset(self._roles(plain)),
            signs=frozenset(map(self._hash, signs)),
            pictures=frozenset(map(self._hash, pictures)),
            plain=0 if cut else self._hash(" ".join(earlier_words(text))),
            cut=cut,
            wording=0 if cut else self._hash(" ".join(wording(text))),
            requests=() if cut else tuple(tuple(self._said(split(one).words)) for one in requests(text)),
            grammar=self._grammar(text) if len(plain) < WORDS_IN_ORDER else None,
        )

    def _grammar(self, text: str) -> Grammar:
        text, _ = bare(text)
        words = [word for word, _ in split(text).words]
        return grammar_of(
            words, fronted=fronted(text), code=bool(code_in(text)), key=lambda word: self._hash(stem(word))
        )

    def _said(self, words: Sequence[tuple[str, bool]]) -> Iterable[int]:
        """What says something, numbers, too."""
        yield from (self._hash(stem(word)) for word, _ in _saying(words))
        yield from map(self._hash, numbers_of([word for word, _ in words]))

    def _sides(self, text: str, tokens: Tokens) -> Iterable[tuple[int, int]]:
        for word, _ in tokens.words:
            yield from CLASSES.get(word.casefold(), ())
            if word in _DOES:
                yield _DOES[word]
        if any(unspaced(word) for word, _ in tokens.words):
            yield UNSPACED, int(_NOT.search(text) is not None)
        for written in tokens.cased:
            yield self._hash(written.casefold()), self._hash(written)

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


def _saying(words: Iterable[tuple[str, bool]]) -> Iterable[tuple[str, bool]]:
    """Those that say something and are no numbers and no negations."""
    for word, named in words:
        if word not in EMPTY and not number_of(word) and word.replace("'", "") not in NEGATIONS:
            yield word, named


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
