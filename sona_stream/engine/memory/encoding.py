"""An episode as bytes: vectors and states in int8 with a scale per row.

head    what judges a candidate: contextual and system vectors, the question's words, the version of the space;
        where something was said before the question, its contextual vector and words, too (version 2)
body    token ids, scales, states standardised in that space. Hidden states have a few entries a hundred times the
        others; quantised as they are, only those would be left of them.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...episodes import EpisodeStates, QuestionVectors
from ...kernels import Kernels
from ...lora import HiddenSpace
from .words import Features

__all__ = [
    "Codes",
    "Head",
    "body_of",
    "codes_from",
    "codes_of",
    "cosine",
    "head_bytes",
    "head_from",
    "head_of",
    "states_from",
    "tokens_from",
]

F32 = NDArray[np.float32]
_HEAD = struct.Struct("<HHHHI")
"""version; size of the contextual vector, of the system vector, of the space's version, of the words"""
_BEFORE = struct.Struct("<HI")
"""Behind the head of version 2: size of the contextual vector, of the words"""
_BODY = struct.Struct("<II")
"""tokens, hidden size"""
_ALONE, _AFTER = 1, 2
"""Versions: of a question with nothing before it, and with something"""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """A vector in int8; its scale does not matter to a cosine."""

    values: NDArray[np.int8]
    inverse: float
    """1 / length of `values`; 0 for the zero vector"""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Head:
    """What of an episode its candidates are judged by."""

    contextual: Codes | None
    system: Codes | None
    """None: no system prompt"""
    words: bytes
    """`Features` as JSON"""
    space_version: str
    before: Codes | None = None
    """Contextual vector of what was said before; None: nothing, or not known"""
    words_before: bytes = b""
    """`Features` of that as JSON"""

    @property
    def features(self) -> Features:
        """Read anew each time: most candidates are out before their words are looked at."""
        return Features.from_json(self.words)


def codes_of(vector: F32, kernels: Kernels) -> Codes:
    """(e,) -> int8 (e,)"""
    values = np.empty(vector.shape, np.int8)
    kernels.quantize_row(np.ascontiguousarray(vector, np.float32), values)
    return codes_from(values)


def cosine(a: Codes, b: Codes) -> float:
    """Of two vectors of the same size; 0 for others."""
    if a.values.shape != b.values.shape:
        return 0.0
    return float(a.values.astype(np.int32) @ b.values.astype(np.int32)) * a.inverse * b.inverse


def head_of(
    vectors: QuestionVectors, features: Features, version: str, kernels: Kernels, before: Features | None = None
) -> Head:
    """Of a question; ``vectors.system`` is None where there is no system prompt. ``before``: of what was said."""
    known = before is not None and vectors.before is not None
    return Head(
        contextual=None if vectors.contextual is None else codes_of(vectors.contextual, kernels),
        system=None if vectors.system is None else codes_of(vectors.system, kernels),
        words=features.to_json(),
        space_version=version,
        before=codes_of(vectors.before, kernels) if known and vectors.before is not None else None,
        words_before=before.to_json() if known and before is not None else b"",
    )


def head_bytes(head: Head) -> bytes:
    """Inverse of `head_from`."""
    contextual, system = (b"" if one is None else one.values.tobytes() for one in (head.contextual, head.system))
    parts = (contextual, system, head.space_version.encode(), head.words)
    first = _HEAD.pack(_ALONE if head.before is None else _AFTER, *map(len, parts))
    if head.before is None:
        return b"".join((first, *parts))
    later = (head.before.values.tobytes(), head.words_before)
    return b"".join((first, *parts, _BEFORE.pack(*map(len, later)), *later))


def head_from(data: bytes) -> Head:
    """Raises ValueError for what `head_bytes` did not write."""
    try:
        version, *sizes = _HEAD.unpack_from(data)
        if version not in (_ALONE, _AFTER) or _HEAD.size + sum(sizes) > len(data):
            raise ValueError(f"an episode's head of version {version} cannot be read")
        contextual, system, name, words = _parts(data, _HEAD.size, sizes)
        before, words_before = b"", b""
        if version == _AFTER:
            at = _HEAD.size + sum(sizes)
            later = _BEFORE.unpack_from(data, at)
            if at + _BEFORE.size + sum(later) > len(data):
                raise ValueError("an episode's head is cut off")
            before, words_before = _parts(data, at + _BEFORE.size, later)
        return Head(
            contextual=codes_from(np.frombuffer(contextual, np.int8)) if contextual else None,
            system=codes_from(np.frombuffer(system, np.int8)) if system else None,
            words=words,
            space_version=name.decode(),
            before=codes_from(np.frombuffer(before, np.int8)) if before else None,
            words_before=words_before,
        )
    except struct.error as error:
        raise ValueError(f"an episode's head cannot be read: {error}") from error


def _parts(data: bytes, at: int, sizes: Sequence[int]) -> list[bytes]:
    found = []
    for size in sizes:
        found.append(data[at : at + size])
        at += size
    return found


def body_of(hidden: F32, token_ids: NDArray[np.int32], space: HiddenSpace, kernels: Kernels) -> bytes:
    """(T, d) and (T,) -> bytes; the states are standardised first."""
    standard = np.ascontiguousarray((hidden - space.mean) / space.spread, np.float32)
    codes = np.empty(standard.shape, np.int8)
    scales = np.array([kernels.quantize_row(row, out)[0] for row, out in zip(standard, codes, strict=True)], "<f4")
    ids = np.ascontiguousarray(token_ids, "<i4")
    return b"".join((_BODY.pack(*standard.shape), ids.tobytes(), scales.tobytes(), codes.tobytes()))


def states_from(data: memoryview, space: HiddenSpace) -> EpisodeStates:
    """Inverse of `body_of`, to int8's precision. Raises ValueError when `space` is of another hidden size."""
    tokens, dim = _BODY.unpack_from(data)
    if dim != len(space.mean):
        raise ValueError(f"an episode of hidden size {dim} does not lie in a space of {len(space.mean)}")
    at = _BODY.size
    ids = np.frombuffer(data, "<i4", tokens, at).astype(np.int32)
    scales = np.frombuffer(data, "<f4", tokens, at + 4 * tokens)
    codes = np.frombuffer(data, np.int8, tokens * dim, at + 8 * tokens).reshape(tokens, dim)
    hidden = codes * scales[:, None]
    hidden *= space.spread
    hidden += space.mean
    return EpisodeStates(hidden=np.ascontiguousarray(hidden, np.float32), token_ids=ids, space=space)


def tokens_from(data: memoryview) -> NDArray[np.int32]:
    """The token ids alone."""
    tokens, _ = _BODY.unpack_from(data)
    return np.frombuffer(data, "<i4", tokens, _BODY.size).astype(np.int32)


def codes_from(values: NDArray[np.int8]) -> Codes:
    """Of what was quantised before."""
    square = float(np.square(values, dtype=np.int32).sum())
    return Codes(values, 1.0 / square**0.5 if square > 0 else 0.0)
