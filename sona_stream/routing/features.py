"""Lexical features of a query: what the mean of word vectors cannot see (form, order, opening words)."""

from __future__ import annotations

import math
import re
import zlib
from itertools import islice, pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["BUCKETS", "DIM", "MAX_CHARS", "lexical"]

MAX_CHARS = 1200
"""Only the two ends of a longer query are read, half each: the cost stays bounded."""
BUCKETS = 512
"""Hashed opening words and word pairs."""
_DENSE = 14
DIM = _DENSE + BUCKETS

_WORD = re.compile(r"[a-z']+|\d+")
_CODE_LINE = re.compile(
    r"^\s*(?:def |class |import |from \w+ import |#include|public |function |const |let |var |SELECT )", re.M
)
_IDENTIFIER = re.compile(r"[a-z][A-Z]|\w_\w|\w\(")
_PUNCTUATION = re.compile(r"[{}\[\]();=<>_`\\]")
_OPERATOR = re.compile(r"[+*/=^%$]")
_I = frozenset({"i", "i'm", "i've", "i'd", "i'll", "im", "my", "me", "mine"})
_YOU = frozenset({"you", "you're", "your", "yours", "u", "ya"})
_ASK = frozenset({"who", "what", "when", "where", "which", "why", "how", "whose", "what's", "who's"})


def lexical(text: str) -> NDArray[np.float32]:
    """(DIM,) float32, each entry of order 1; deterministic, any Unicode."""
    if len(text) > MAX_CHARS:
        text = f"{text[: MAX_CHARS // 2]}\n{text[-MAX_CHARS // 2 :]}"
    out = np.zeros(DIM, np.float32)
    words = _WORD.findall(text.lower())
    if not words:
        return out
    out[:_DENSE] = _form(text, words)
    buckets: dict[int, float] = {}
    for rank, gram in enumerate(_openings(words)):
        bucket = _DENSE + zlib.crc32(gram.encode()) % BUCKETS
        buckets[bucket] = buckets.get(bucket, 0.0) + (1.0 if rank < 4 else 0.5)
    out[list(buckets)] = list(buckets.values())
    return out


def _form(text: str, words: list[str]) -> tuple[float, ...]:
    """Length, punctuation, numbers, who is spoken of: `_DENSE` values."""
    size, count = len(text), len(words)
    return (
        min(math.log1p(count) / 5.0, 1.5),
        float(count <= 5),
        float(text.rstrip().endswith("?")),
        min(20.0 * len(_PUNCTUATION.findall(text)) / size, 1.5),
        min(4.0 * sum(map(str.isdigit, words)) / count, 1.5),
        min(20.0 * len(_OPERATOR.findall(text)) / size, 1.5),
        min(text.count("\n") / 4.0, 1.5),
        min(5.0 * sum(map(_I.__contains__, words)) / count, 1.5),
        min(5.0 * sum(map(_YOU.__contains__, words)) / count, 1.5),
        float(words[0] in _ASK),
        float("```" in text or _CODE_LINE.search(text) is not None),
        min(sum(1 for _ in islice(_IDENTIFIER.finditer(text), 3)) / 2.0, 1.5),
        float(": " in text or ":\n" in text),
        1.0,
    )


def _openings(words: list[str]) -> list[str]:
    """The first words with and without their places, and the first pairs: instructions open with their verb."""
    head = words[:6]
    pairs = [f"{a} {b}" for a, b in pairwise(head)]
    return [f"^{head[0]}", f"^{' '.join(head[:2])}", f"^{' '.join(head[:3])}", *pairs, *head]
