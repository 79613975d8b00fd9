"""Whether a message points at something that an earlier one brought: "this function", "the second point",
"translate it into French".

Such a message may have any number of words, names and numbers, and read as if it stood by itself. Where it points,
what was said before is kept beside the question and compared where both sides have it. What the message itself
brings it does not point at: "Summarise this text:" and the text, "the capital of France", "the sun". A definite
noun alone points only at what is written ("the invoice", "the function") or was spoken of earlier: "how long is the
refund window" is the same question after anything else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .tokens import split_words
from .wordlists import CLASSES, COUNTING, EMPTY, HANDLING, LEANING, UNIQUE, WRITTEN
from .words import stem

__all__ = ["points"]

_MATERIAL = 6
"""Words that say something, from which other lines of a message are what its request is about"""
_LONG = 2000
"""Characters from which a message has material in it"""
_THESE = {"this", "these", "those"}
_PRONOUNS = {"it", "its", "he", "him", "his", "she", "her", "they", "them", "their"}
_OWNERS = {"my", "your"}
_QUOTES = "\"'\u201c\u201e\u00ab`"
_APPOSED = re.compile(rf"\b(?:the|this|that)((?:\s+\w+){{1,3}}\s*[{_QUOTES}])", re.IGNORECASE)
""""The word "idle"" is named at once."""
_ELSEWHERE = {"another", "else", "mentioned", "aforementioned"}
_BE = {"is", "was", "does", "did", "would", "will", "can", "could", "be"}
_DO = _BE - {"is", "was", "be"} | {"do"}
_PLACES = {"in", "at", "near"}
_AFTER_HANDLING = {"to", "into", "in", "as", "for", "with", "more", "again", "please", "further", "using", "now"}
_LINKS = _BE | {"between", "among", "during", "before", "after", "since", "until", "against", "without", "because"}
_EXTREMES = {"most", "least", "best", "worst"}


def _sides(*words: str) -> frozenset[str]:
    """All words of the classes that these belong to."""
    chosen = {dimension for word in words for dimension, _ in CLASSES[word]}
    return frozenset(word for word, places in CLASSES.items() if chosen & {dimension for dimension, _ in places})


_TIMES = _sides("monday", "january", "summer", "morning", "week") | {"time", "weekend", "century", "moment"}


class _Message:
    """Its words: what follows what, and what stands before what."""

    def __init__(self, text: str, earlier: Sequence[str] = ()) -> None:
        found = [(word, named) for word, named in split_words(text) if any(map(str.isalnum, word))]
        self.earlier = {stem(word) for one in earlier for word in _said(one)}
        self.words = [word for word, _ in found]
        self.named = [named or word[0].isdecimal() for word, named in found]
        self.stems = [stem(word) for word in self.words]

    def at(self, i: int) -> str:
        return self.words[i] if 0 <= i < len(self.words) else ""

    def phrase(self, i: int) -> int:
        """End of the words that say something from i on."""
        while i < len(self.words) and self.words[i] not in EMPTY and self.words[i] not in _LINKS:
            i += 1
        return i

    def brought(self, i: int) -> bool:
        """Whether word i stands earlier in the message, too."""
        return self.stems[i] in self.stems[:i]


def points(text: str, earlier: Sequence[str] = ()) -> bool:
    """Whether a message may mean something that was said in the ``earlier`` ones."""
    if len(text) > _LONG:
        return False
    message = _Message(_APPOSED.sub(r"\1", text), earlier)
    rules = _BACK if _brings_its_own(text) else (*_BACK, *_UNLESS_BROUGHT)
    return any(rule(message, i) for i in range(len(message.words)) for rule in rules)


def _brings_its_own(text: str) -> bool:
    """Whether there is material beside the request: other lines, or what follows a colon."""
    _, colon, rest = text.partition(":")
    if colon and (rest.lstrip()[:1] in tuple(_QUOTES) or len(_said(rest)) >= _MATERIAL):
        return True
    lines = text.splitlines()
    parts = [len(_said(line)) for line in lines] if len(lines) > 1 else []
    return sum(parts) - min((count for count in parts if count), default=0) >= _MATERIAL


def _said(text: str) -> list[str]:
    return [word for word, _ in split_words(text) if word not in EMPTY and word not in LEANING]


def _this(message: _Message, i: int) -> bool:
    """Demonstratives before anything: but "this week", and "a function ... this function"."""
    if message.words[i] not in _THESE:
        return False
    end = message.phrase(i + 1)
    return message.at(i + 1) not in _TIMES and not (end > i + 1 and message.brought(end - 1))


def _that(message: _Message, i: int) -> bool:
    """Before a noun, and neither a conjunction nor a relative: "explain that part", "is that answer right"."""
    if message.words[i] != "that":
        return False
    follows, before = message.at(i + 1), message.at(i - 1)
    return (not follows or follows not in EMPTY) and (i <= 1 or before in EMPTY)


def _there_above(message: _Message, i: int) -> bool:
    """As in "the text above", "as mentioned", "another example", "in Python instead": no "above 30"."""
    word, follows = message.words[i], message.at(i + 1)
    if word in ("above", "below"):
        return not follows or follows in EMPTY
    return word in _ELSEWHERE or (word in ("instead", "previously", "earlier") and not follows)


def _definite(message: _Message, i: int) -> bool:
    """A definite noun of which the message says nothing more, and which something before may have brought."""
    if message.words[i] != "the":
        return False
    end = message.phrase(i + 1)
    said = range(i + 1, end)
    if not said:
        return False
    words = [message.words[j] for j in said]
    if "of" in (message.at(end), message.at(end + 1)) or message.at(end) in ("between", "among", "who", "whose"):
        return False  # "of the invoice" is looked at by itself
    if not any(message.words[j] in WRITTEN or message.stems[j] in message.earlier for j in _nouns(message, i, end)):
        return False
    if any(message.named[j] or message.brought(j) for j in said) or UNIQUE.intersection(words):
        return False
    if (words[0] in _EXTREMES or words[0].endswith("est")) and words[0] not in COUNTING:
        return False
    named = end + 1 < len(message.words) and message.named[end + 1] and message.at(end + 1) not in CLASSES
    return not (message.at(end) in _PLACES and named)


def _nouns(message: _Message, i: int, end: int) -> range:
    """Which of a phrase's words may be its noun: the last of "the file size"; after a verb any, for what follows
    may be none of it: "does the code handle", "make the function faster".
    """
    before = message.at(i - 1)
    verb = before in HANDLING or before in _DO or (before in _BE and i == 1)
    return range(i + 1 if verb else end - 1, end)


def _owned(message: _Message, i: int) -> bool:
    """As in "your last answer", "my essay"; no "my order"."""
    if message.words[i] not in _OWNERS:
        return False
    some = message.words[i + 1 : message.phrase(i + 1)]
    return bool(some) and (some[-1] in WRITTEN or some[0] in COUNTING)


def _counted(message: _Message, i: int) -> bool:
    """As in "point 3", "second paragraph", "more examples"; no "chapter 3 of Moby Dick"."""
    word, follows = message.words[i], message.at(i + 1)
    if word in COUNTING or word == "more":
        return follows in WRITTEN
    return word in WRITTEN and follows[:1].isdecimal() and message.at(i + 2) != "of"


def _pronoun(message: _Message, i: int) -> bool:
    """One for which nothing before it stands: no first word, no verb of `HANDLING`; but "it is true that"."""
    if message.words[i] not in _PRONOUNS:
        return False
    inverted = message.words[i] == "it" and {message.at(i - 1), message.at(i + 1)} & _BE
    if inverted and {"to", "that"}.intersection(message.words[i + 2 : i + 6]):
        return False
    earlier = message.words[1:i]
    return not any(w not in EMPTY and w not in LEANING and w not in HANDLING for w in earlier)


def _handled(message: _Message, i: int) -> bool:
    """As in "translate to French": a verb at the beginning, and nothing that it is done to."""
    if message.words[i] not in HANDLING or any(word not in EMPTY for word in message.words[:i]):
        return False
    return not message.at(i + 1) or message.at(i + 1) in _AFTER_HANDLING


_BACK = (_there_above, _owned)
"""Rules that what a message brings itself does not answer"""
_UNLESS_BROUGHT = (_this, _that, _definite, _counted, _pronoun, _handled)
