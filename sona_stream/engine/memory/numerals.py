"""Values of a text's numbers: "fifty thousand" is 50,000; version 3.10 is not 3.1, nor agent 007 agent 7."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .tokens import HAN_DIGITS
from .wordlists import CLASSES, EMPTY, NUMBER_WORDS

__all__ = ["number_of", "numbers_of", "runs"]

_SCALES = {"hundred", "thousand", "million", "billion"}
_LONGEST_FACTOR = 15
"""Digits of what may stand before "million": nobody writes more, and integers have a longest text."""
_SIGNS = {"$", "\u20ac", "\u00a3", "\u00a5", "%"}
_UNITS = (
    _SIGNS
    | {"percent"}
    | {
        word
        for word, places in CLASSES.items()
        if {place[0] for place in places}
        & {place[0] for unit in ("day", "meter", "gram", "dollar") for place in CLASSES[unit]}
    }
)
_BEFORE = _SIGNS | {"+", "-", "*", "/", "=", "<", ">", "(", "", *EMPTY}
_SMALL = dict(zip(HAN_DIGITS, (0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 7, 8, 9), strict=False))
_POWERS = dict(zip(HAN_DIGITS[len(_SMALL) :], (10, 100, 1000, 10**4, 10**4, 10**8, 10**8), strict=True))


_MYRIAD = 10**4


def number_of(word: str) -> str:
    """Its value as digits; empty for a word that is no number."""
    if word[0] == "." and word[1:].isdecimal():
        word = f"0{word}"
    if word[0] in HAN_DIGITS:
        return _han(word)
    if not word[0].isdecimal():
        return NUMBER_WORDS.get(word, "")
    digits = re.sub(r",(?=\d{3}\b)", "", word)
    return digits.lstrip("0") if re.fullmatch(r"0\d:\d\d", digits) else digits


def runs(words: Sequence[str]) -> Iterable[tuple[str, int, int]]:
    """(value, first word, end) of each number; "fifty thousand" is one, and so is "two million"."""
    last, start = "", 0
    for i, word in enumerate(words):
        value = number_of(word)
        if word in _SCALES and last.isdecimal() and len(last) <= _LONGEST_FACTOR:
            last = str(int(last) * int(value))
            continue
        if last:
            yield last, start, i
        last, start = _plain(value, words, i), i
    if last:
        yield last, start, len(words)


def numbers_of(words: Sequence[str]) -> Iterable[str]:
    """Values of all."""
    return (value for value, _, _ in runs(words))


def _plain(value: str, words: Sequence[str], i: int) -> str:
    """Without zeros that say nothing: of an amount, and of a number that follows no word which it may belong to."""
    if not re.fullmatch(r"\d+\.\d*0", value):
        return value
    before, after = words[i - 1] if i else "", words[i + 1] if i + 1 < len(words) else ""
    if before in _SIGNS or after in _UNITS:
        return value.rstrip("0").rstrip(".")
    return re.sub(r"\.0+$", "", value) if before in _BEFORE else value


def _han(word: str) -> str:
    """\u4e09\u5341 is 30, \u4e8c\u3007\u4e8c\u516d 2026."""
    if not any(digit in _POWERS for digit in word):
        return "".join(str(_SMALL[digit]) for digit in word)
    if len(word) > _LONGEST_FACTOR:
        return word
    total = part = digit = 0
    for one in word:
        power = _POWERS.get(one, 1)
        if power == 1:
            digit = _SMALL[one]
        elif power < _MYRIAD:
            part, digit = part + (digit or 1) * power, 0
        else:
            many = (part + digit or 1) * power
            total, part, digit = (total + many if power == _MYRIAD else total * power + many), 0, 0
    return str(total + part + digit)
