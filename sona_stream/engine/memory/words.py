"""What of a question's words the gate looks at: small, comparable without the text, kept beside its vectors.

Words are kept as hashes keyed with a secret of the state folder, so that an episode stored without its text does
not show it. The lists behind this are English; of other languages numbers, identity and order of words count.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence

from .wordlists import CLASSES, EMPTY, NEGATIONS, NUMBER_WORDS, PREFIXES

__all__ = ["Features", "Reader", "split_words", "stem"]

_WORD = re.compile(r"\d[\d.,:/-]*\d|\d|[^\W\d_]+(?:['\u2019][^\W\d_]+)*|[^\W_]+|[+*/=<>%$\u20ac\u00a3#-](?=\s|\w)")
_ASKING = ("who", "when", "where", "why", "how")
_MEASURES = {"many", "much", "long", "old", "far", "often", "tall", "big", "fast", "high", "deep", "heavy", "large"}
_SCALES = {"hundred", "thousand", "million", "billion"}
_DIRECTIONS = {"from", "to", "into", "than"}
_MOST_WORDS = 400
_WORDS_IN_ORDER = 64
_ENCLITIC = re.compile(r"'(s|re|ve|ll|d|m)?$")
_SENTENCE_END = re.compile(r"[.!?:;\n]\s*[\"'(\[]*$|^\W*$")


@dataclasses.dataclass(frozen=True, slots=True)
class Features:
    """Of one question. Numbers in tuples are keyed hashes of words."""

    exact: int
    """of all words in order"""
    words: tuple[int, ...]
    """all words in order, the first 64, those that say nothing by themselves negative; none of episodes that were
    stored before this was kept"""
    content: tuple[int, ...]
    """words that say something, in order"""
    names: frozenset[int]
    """those of them written as names inside a sentence"""
    numbers: tuple[int, ...]
    """sorted"""
    negated: bool
    asking: frozenset[str]
    """who, when, where, why, how, or how with a measure; what and which ask for anything"""
    sides: frozenset[tuple[int, int]]
    """(dimension, side) of `wordlists.CLASSES`"""
    stripped: frozenset[int]
    """words without a prefix of negation"""
    roles: frozenset[tuple[str, int]]
    """(from | to | into | than, the word that follows)"""

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
        return json.dumps(values, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Features:
        """Inverse of `to_json`. Raises ValueError."""
        exact, content, names, numbers, negated, asking, sides, stripped, roles, *later = json.loads(data)
        return cls(
            exact=exact,
            words=tuple(later[0]) if later else (),
            content=tuple(content),
            names=frozenset(names),
            numbers=tuple(numbers),
            negated=negated,
            asking=frozenset(asking),
            sides=frozenset((a, b) for a, b in sides),
            stripped=frozenset(stripped),
            roles=frozenset((a, b) for a, b in roles),
        )


def split_words(text: str) -> list[tuple[str, bool]]:
    """(word in lower case without possessive, whether it is written as a name), of a text's two ends."""
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
    if len(text) > 24 * _MOST_WORDS:
        text = text[: 12 * _MOST_WORDS] + "\n" + text[-12 * _MOST_WORDS :]
    found = []
    for match in _WORD.finditer(text):
        word = match.group()
        shouted = len(word) > 1 and any(c.isupper() for c in word[1:])
        inside = word[0].isupper() and not _SENTENCE_END.search(text[max(0, match.start() - 8) : match.start()])
        lower = _ENCLITIC.sub("", word.casefold())
        found.append((lower, (shouted or inside) and lower != "i"))
    half = _MOST_WORDS // 2
    return found if len(found) <= _MOST_WORDS else found[:half] + found[-half:]


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
        words = split_words(text)
        plain = [word for word, _ in words]
        said = [(word, named) for word, named in words if word not in EMPTY and not _number(word)]
        said = [(word, named) for word, named in said if word.replace("'", "") not in NEGATIONS]
        return Features(
            exact=self._hash(" ".join(plain)),
            words=tuple(self._signed(word) for word in plain[:_WORDS_IN_ORDER]),
            content=tuple(self._hash(stem(word)) for word, _ in said),
            names=frozenset(self._hash(stem(word)) for word, named in said if named),
            numbers=tuple(sorted(map(self._hash, _numbers(plain)))),
            negated=any(word.replace("'", "") in NEGATIONS or word.endswith("n't") for word in plain),
            asking=frozenset(_asking(plain)),
            sides=frozenset(side for word in plain for side in CLASSES.get(word, ())),
            stripped=frozenset(self._hash(stem(rest)) for word, _ in said for rest in _stripped(word)),
            roles=frozenset(self._roles(plain)),
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
    if not word[0].isdigit():
        return NUMBER_WORDS.get(word, "")
    digits = re.sub(r",(?=\d{3}\b)", "", word)
    return digits.rstrip("0").rstrip(".") if re.fullmatch(r"\d+\.\d+", digits) else digits.lstrip("0") or "0"


def _numbers(words: Sequence[str]) -> Iterable[str]:
    """Values of all; "fifty thousand" is one, and so is "two million"."""
    last = ""
    for word in words:
        value = _number(word)
        if word in _SCALES and last.isdigit():
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
