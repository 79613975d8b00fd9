"""A question's wording, less a few things that hardly ever matter.

Two questions of the same wording are one, without any judgement; so only what hardly ever makes them two is left
out, and the list is closed: greetings and politeness, "tell me" before a question, contractions, "the" where
more is said, words that are alike ("is" and "are"), how numbers are written, and the plural after them. All other
words count, in order: "a", pronouns, tenses, modals, "and" and "or", prepositions, endings ("bored", "boring").
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .numerals import number_of, runs
from .tokens import split_words
from .wordlists import ALIKE, EMPTY, OPENING, SPOKEN

__all__ = ["bare", "code_in", "fronted", "wording"]

_APOSTROPHES = str.maketrans("\u2019\u02bc", "''")
_APART = r"(?:\s*[,.;!?\n]\s*|\s+[\u2013\u2014-]\s+|\s*\()"
_GREETING = re.compile(
    rf"^\W*(?:hello|hi|hey|good (?:morning|evening|afternoon|day))(?: there)?{_APART}(?=\W*\w+\W+\w+\W+\w)",
    re.IGNORECASE,
)
_FIRST = re.compile(
    r"^\W*(?:(?:please|kindly),?\s+(?!please|is\b|means?\b)|\u8bf7\u95ee\W?|\u8acb\u554f\W?)", re.IGNORECASE
)
_LAST = re.compile(
    rf"{_APART}(?:please|kindly|thanks|thank you|many thanks|thanks in advance|thank you in advance)\W*$",
    re.IGNORECASE,
)
_TAIL = 80
"""Characters at the end in which politeness is looked for"""
_TELL = re.compile(
    r"^\W*(?:(?:(?:can|could|would|will) you (?:please |kindly )?)?tell me|do you know"
    r"|i(?: would|'d) like to know|i (?:want|need) to know)(?: please)?[,:]?\s+"
    r"(?=(?:what|who|whom|whose|which|where|when|why|how|(?<=tell me )the)\b)",
    re.IGNORECASE,
)
_POLITE = re.compile(r"^\W*((?:can|could|would|will) you) (?:please|kindly)\b", re.IGNORECASE)
_NEGATED = re.compile(r"\b(?:(ca)n'?t|(wo)n'?t|(sha)n'?t|(cannot)|(\w+)n't)\b", re.IGNORECASE)
_CONTRACTED = (
    (re.compile(r"\b(what|who|where|when|why|how|that|there|here|it|he|she)'s\b", re.IGNORECASE), r"\1 is"),
    (re.compile(r"\blet's\b", re.IGNORECASE), "let us"),
    (re.compile(r"'re\b", re.IGNORECASE), " are"),
    (re.compile(r"'ve\b", re.IGNORECASE), " have"),
    (re.compile(r"'ll\b", re.IGNORECASE), " will"),
    (re.compile(r"\bI'm\b", re.IGNORECASE), "I am"),
    (re.compile(r"'d\b", re.IGNORECASE), " d"),  # would, had or did
)
_FULL = {"ca": "can", "wo": "will", "sha": "shall", "cannot": "can"}
_SET_APART = re.compile(r"\w[,:]\s+\w")
_PLACES = ("in", "on", "at", "by")
_SAYING = 2
"""Words that say something, from which "the" does not matter: "the matter" is not "matter"."""
_CALL = re.compile(r"[\w)\]]\(")
_STRING = re.compile(r"[\"'`]-?[\d.]+[\"'`]")
_BE = ("is", "are", "was", "were")
_ASKING = ("what", "who", "where", "when", "how")
_ORDINALS = {"first", "second", "third", "twice", "double", "triple", "dozen"}


def wording(text: str) -> list[str]:
    """Its words."""
    text, told = bare(text)
    code = code_in(text)
    words = _asked(_ends([word for word, _ in split_words(text)]), told=told)
    return [*_counted([ALIKE.get(word, word) for word in _without_the(words)]), *code]


def code_in(text: str) -> list[str]:
    """What tells one piece of code from another of the same words: brackets of a call, or numbers in quotes."""
    return [re.sub(r"[^(),\"'`]", "", text)] if _CALL.search(text) else _STRING.findall(text)


def bare(text: str) -> tuple[str, bool]:
    """(without politeness and contractions, whether it began with "tell me" or the like)"""
    lines = text.translate(_APOSTROPHES).splitlines()
    text = "\n".join(filter(None, (" ".join(line.split()) for line in lines)))  # for the patterns' time
    text = text[:-_TAIL] + _LAST.sub("", text[-_TAIL:])
    for polite in (_GREETING, _FIRST):
        text = polite.sub("", text)
    text, told = _TELL.subn("", text)
    text = _NEGATED.sub(_not, _POLITE.sub(r"\1", text))
    for short, full in _CONTRACTED:
        text = short.sub(full, text)
    return text, told > 0


def fronted(text: str) -> bool:
    """Whether something in it is set apart: "the taxi: who pays for it?"."""
    return _SET_APART.search(text) is not None


def _not(match: re.Match[str]) -> str:
    verb = next(group for group in match.groups() if group)
    return f"{_FULL.get(verb.lower(), verb)} not"


def _asked(words: Sequence[str], *, told: bool) -> list[str]:
    """As a direct question: "(tell me) what the capital is", "(tell me) the capital"."""
    words = list(words)
    if words[:1] == ["the"] and ("of" in words or not told):  # but "tell me the truth"
        return ["what", "is", *words]
    if told and len(words) > 2 and words[0] in _ASKING and words[-1] in _BE and words[1] not in _BE:
        return [words[0], words[-1], *words[1:-1]]
    if words[:2] == ["how", "can"] and words[2:3] in (["i"], ["we"]):
        words[1] = "do"
    return words


def _ends(words: list[str]) -> list[str]:
    """Without what says nothing at either end; "say thanks" says something."""
    while len(words) > 1 and words[0] in OPENING:
        words = words[1:]
    while len(words) > _SAYING and words[-1] == "please" and not SPOKEN.intersection(words):
        words = words[:-1]
    return words


def _without_the(words: Sequence[str]) -> list[str]:
    """Where more is said; but "in the case of", "out of the question", "spell the"."""
    if sum(word not in EMPTY for word in words) < _SAYING:
        return list(words)
    return [word for i, word in enumerate(words) if word != "the" or _matters(words, i)]


def _matters(words: Sequence[str], i: int) -> bool:
    before = words[i - 1] if i else ""
    phrase = before in _PLACES and words[i + 2 : i + 3] == ["of"]
    return phrase or before in SPOKEN or list(words[max(0, i - 2) : i]) == ["out", "of"]


def _counted(words: Sequence[str]) -> list[str]:
    """With the values of numbers, and what is counted in the singular."""
    out: list[str] = []
    end = 0
    for value, start, stop in runs(words):
        out += words[end:start]
        literal = any(word in _ORDINALS or (word.endswith("th") and number_of(word)) for word in words[start:stop])
        out += words[start:stop] if literal else [f"#{value}"]
        out += [_singular(word) for word in words[stop : stop + 1] if not literal and not number_of(word)]
        end = stop + (stop < len(words) and not literal and not number_of(words[stop]))
    return [*out, *words[end:]]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word
