"""A text's words, and the signs in it that mean something: "C++" is not "C", nor "(2 + 3) * 4" "2 + 3 * 4".

What only writes a sentence down is left out, so that questions which differ in nothing else have the same words:
quotation marks, commas, dashes, bullets, emphasis, brackets around words. A sign that belongs to a word is part of
it (C++, C#, .NET, AB-); operators, currencies and the like are words of their own, brackets where they group
operands, and so is what stands by itself: "what does ?? do". Pictures (emoji and such symbols) are told apart: most
only decorate. Of scripts without spaces between words (Chinese, Japanese, Thai and the like) each character is one.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from .wordlists import EMPTY

__all__ = ["HAN_DIGITS", "Tokens", "earlier_words", "split", "split_words", "unspaced", "whole_text"]

_MOST_WORDS = 400
_MOST_CHARACTERS = 24 * _MOST_WORDS
HAN_DIGITS = "〇零一二两兩三四五六七八九十百千万萬亿億"
"""0 0 1 2 2 2 3 4 5 6 7 8 9, 10, 100, 1000, 10,000 twice, 100 millions twice"""
_UNSPACED = (
    "\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46\u0e80-\u0eaf\u0eb2\u0eb3\u0ebd-\u0ec6\u0edc-\u0edf"  # Thai, Lao
    "\u1000-\u102a\u103f\u1780-\u17b3"  # Burmese, Khmer
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Chinese
)
_LETTER = rf"[^\W\d_{_UNSPACED}]"
_TOKEN = re.compile(
    r"(?P<bare>(?<!\S)(?=[^\w\s]*[?!.:;,])[!-/:-@\[-`{-~]+(?=\s+\S))"
    rf"|(?P<word>[{HAN_DIGITS}]+|[{_UNSPACED}]|\d[\d.,:/-]*\d|\d|(?<![\w.])\.\w+|(?<![\w'])[A-Z]{{1,2}}-(?![\w-])"
    rf"|{_LETTER}+(?:['\u2019]{_LETTER}+)*(?:\+{{1,2}}(?![\w+])|#(?!\w))?|[^\W_{_UNSPACED}]+)"
    r"|(?P<sign>__+|::|:=|(?<!\S)[\"'`](?=[\s?]|$)|(?<=[\"'`])[.:;,?]+(?=[\"'`])|[-+*/=<>%$\u20ac\u00a3#&|^~@\\!]+)|(?P<other>[^\w\s])"
)
_EARLIER = re.compile(
    r"\d[\d.,:/-]*\d|\d|[^\W\d_]+(?:['\u2019][^\W\d_]+)*|[^\W_]+|[+*/=<>%$\u20ac\u00a3#-](?=\s|\w)"
)
_ENCLITIC = re.compile(r"'(s|re|ve|ll|d|m)?$")
_SENTENCE_END = re.compile(r"[.!?:;\n]\s*[\"'(\[]*$|^\W*$")
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3})(?=\w)([^*\n]*\w[^\w*\s]*)\1(?![\w*])")
_BULLET = re.compile(r"^[ \t]*(?:[-*+>]|#{1,6})[ \t]+", re.MULTILINE)
_FORMULA = re.compile(r"[\w)\]]\s*[+*/^=<>%|&]+\s*[\w(\[]|-\s*\(\s*\w|\w\s*\)\s*-")
_SIGNS = str.maketrans({"\u2212": "-", "\u00d7": "*", "\u00f7": "/", "\u2044": "/", "\u2264": "<=", "\u2265": ">="})
_UNSPACED_WORD = re.compile(rf"[{HAN_DIGITS}{_UNSPACED}]")
_CASED = re.compile(
    r"(?<!\S)-(?P<option>[A-Za-z])(?![\w-])|(?<![\w.,])\d[\d.,]*\s?(?P<unit>[A-Za-z\u03bc]{1,4})(?!\w)"
)
_RAISED = re.compile("(?<=[0-9A-Za-z\u0370-\u03ff)])[\u00b9\u00b2\u00b3\u2070\u2074-\u2079]+")
_FRACTION = re.compile("(?<=[0-9])(?=[\u00bc-\u00be\u2150-\u215e])")
_QUOTES = ("'", '"', "`", "\u201c", "\u201d", "\u2018")
_ME = ("I", "I'm", "I'd", "I'll", "I've")
_WRITTEN_SO = (*_ME, "OK", "AM")
_ACRONYM = 3
"""Letters; more of them in capitals are there for emphasis."""
_JOINING = ("-", "/")
_OPERATORS = "+-*/^=<>%|&"
_COUNTABLE = re.compile(r"(?:\d|\)|(?<![^\W_])[^\W\d_])$")
_ENDINGS = ".?!\u3002\u2026 "
_NEAR = 8
"""Characters to either side that are looked at"""


class Tokens(NamedTuple):
    """Of one text."""

    words: list[tuple[str, bool]]
    """(word in lower case without possessive, or sign; whether it is written as a name). In capitals a word that
    says nothing by itself and is spoken of here: the IT department, vitamin A, the "for" loop
    """
    signs: list[str]
    """Those of `words` that are no hyphens and no "and/or"."""
    pictures: list[str]
    cased: list[str]
    """options and units as they are written: "-v" is not "-V", nor "mW" "MW"; of units in small letters only those
    of one letter: "16 gb" is what somebody writes who means "16 GB"
    """
    cut: bool
    """Whether these are of the two ends of a longer text"""


def split(text: str) -> Tokens:
    """All words of a text, or those of its two ends."""
    cut = len(text) > _MOST_CHARACTERS
    if cut:
        text = text[: _MOST_CHARACTERS // 2] + "\n" + text[-_MOST_CHARACTERS // 2 :]
    text = _BULLET.sub("", _EMPHASIS.sub(r"\2", _characters(text)))
    words: list[tuple[str, bool]] = []
    signs: list[str] = []
    pictures: list[str] = []
    loud = not any(map(str.islower, text))
    formula = _FORMULA.search(text) is not None
    letters, marked = 0, False
    for match in _TOKEN.finditer(text):
        token, start = match.group(), match.start()
        if match.lastgroup == "word":
            if (
                marked and start == letters and not unspaced(token)
            ):  # a letter after a vowel sign, as in Hindi: one word
                words[-1] = words[-1][0] + token.casefold(), words[-1][1]
            else:
                words.append((_word(token, text, start, loud=loud), _named(token, text, start)))
            letters, marked = match.end(), False
            continue
        kind = unicodedata.category(token) if match.lastgroup == "other" else ""
        if match.lastgroup == "bare":
            spoken_of = token.strip(".!?") or not text[match.end() :].lstrip()[:1].isupper()
            words += [(token, False)] if spoken_of else []
            signs += [token] if spoken_of else []
        elif kind.startswith("M") and words and start == letters:
            words[-1] = words[-1][0] + token, words[-1][1]
            letters, marked = match.end(), True
        elif kind == "So":
            pictures.append(token)
        else:
            sign = _sign(token, kind, text, start, formula=formula)
            words += [(sign, False)] if sign else []
            signs += [sign] if sign and (sign not in _JOINING or _between(text, start, match.end())) else []
    if len(words) > _MOST_WORDS:
        words, cut = words[: _MOST_WORDS // 2] + words[-_MOST_WORDS // 2 :], True
    return Tokens(words, signs, pictures, _cased(text, loud=loud), cut)


def split_words(text: str) -> list[tuple[str, bool]]:
    """`Tokens.words` of it."""
    return split(text).words


def unspaced(word: str) -> bool:
    """Whether it is of a script without spaces between words."""
    return _UNSPACED_WORD.match(word) is not None


def whole_text(text: str) -> str:
    """All of it, less what never matters: case, width, white space, marks at its end."""
    text = " ".join(_characters(text).casefold().split())
    ended = text.rstrip(_ENDINGS)
    factorial = text[len(ended) :].startswith("!") and _COUNTABLE.search(ended)
    return f"{ended}!" if factorial else ended


def earlier_words(text: str) -> list[str]:
    """Words as they were before signs counted, for comparison with what was stored then; of a text not cut."""
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
    return [_ENCLITIC.sub("", match.group().casefold()) for match in _EARLIER.finditer(text)]


def _characters(text: str) -> str:
    """In one form each. NFKC alone would make 22 of "2\u00b2"."""
    if not text.isascii():
        text = _RAISED.sub(lambda match: "^" + match.group(), _FRACTION.sub(" ", text))
        text = unicodedata.normalize("NFKC", text).translate(_SIGNS).replace("\u2019", "'")
    return text


def _word(token: str, text: str, start: int, *, loud: bool) -> str:
    word, end = _ENCLITIC.sub("", token.casefold()), start + len(token)
    if word not in EMPTY:
        return word
    quoted = text[max(0, start - 1) : start] in _QUOTES and text[end : end + 1] in _QUOTES
    if loud or not token.isupper() or token in _WRITTEN_SO or len(token) > _ACRONYM:
        return word.upper() if quoted else word
    return word.upper() if quoted or len(token) > 1 or _inside(text, start) else word


def _cased(text: str, *, loud: bool) -> list[str]:
    found = []
    for match in _CASED.finditer(text):
        option, unit = match.group("option", "unit")
        if option:
            found.append(f"-{option}")
        elif not loud and (len(unit) == 1 or not unit.islower()):
            found.append(unit)
    return found


def _inside(text: str, start: int) -> bool:
    """Whether no sentence begins there."""
    return not _SENTENCE_END.search(text[max(0, start - _NEAR) : start])


def _named(word: str, text: str, start: int) -> bool:
    shouted = len(word) > 1 and any(c.isupper() for c in word[1:])
    return (shouted or (word[0].isupper() and _inside(text, start))) and word not in _ME


def _sign(token: str, kind: str, text: str, start: int, *, formula: bool) -> str:
    """The sign that this means; empty where it only writes a sentence down."""
    end = start + len(token)
    before, after = text[start - 1 : start], text[end : end + 1]
    left, right = _around(text, start, end)
    if before in _QUOTES and after in _QUOTES:  # spoken of: what does ";" mean?
        return token
    if kind:
        grouping = token in "()" and formula and _groups(token, left, right)
        return token if kind in ("Sm", "Sc") or token in "[]{}" or grouping else ""
    inside = _between(text, start, end)
    leading = not before.strip() and _wordy(after)
    if set(token) == {"-"}:
        spaced = not before.strip() and not after.strip()
        joining = len(token) == 1 and not spaced and (after.isspace() or _wordy(after))
        decrement = token == "--" and before == left[-1:] != "" and _operand(left, -1)
        return token if joining or leading or inside or decrement else ""
    if set(token) == {"!"}:
        factorial = before.isdecimal() or before == ")" or (before.islower() and _operand(left, -1))
        return "!" if leading or factorial else ""
    if token == "&":  # "R&D" is "R and D"
        return token if leading or (inside and (left[-1].isdecimal() or right[0].isdecimal())) else ""
    if token == "~" and not (_wordy(after) or after in ("/", "=")):
        return ""
    if token == "=" and right[:1] in ("", "?"):
        return ""
    return token.rstrip("!") if not after.strip() else token


def _around(text: str, start: int, end: int) -> tuple[str, str]:
    return text[max(0, start - _NEAR) : start].rstrip(), text[end : end + _NEAR].lstrip()


def _between(text: str, start: int, end: int) -> bool:
    """Whether there are operands on both sides."""
    left, right = _around(text, start, end)
    return _operand(left, -1) and _operand(right, 0)


def _groups(token: str, left: str, right: str) -> bool:
    """Whether a bracket groups operands."""
    if token == "(":
        return left[-1:] in tuple(_OPERATORS) or _operand(right, 0) or right[:1] == "-"
    return right[:1] in tuple(_OPERATORS) or _operand(left, -1) or left[-1:] == "!"


def _operand(side: str, at: int) -> bool:
    """Whether a number, a bracket or a lone letter is there, next to a sign."""
    nearest = side[at:][:1]
    if nearest.isalpha():
        beyond = side[1:2] if at == 0 else side[-2:-1]
        return not _wordy(beyond)
    return nearest.isdecimal() or (nearest != "" and nearest in ("([{" if at == 0 else ")]}"))


def _wordy(character: str) -> bool:
    return character.isalnum() or character == "_"
