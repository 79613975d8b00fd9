"""A question as it is kept without its text: its static vector, and what of an episode's head belongs to it."""

from __future__ import annotations

import dataclasses
import struct

import numpy as np

from ...episodes import EpisodeRecord, Question, QuestionVectors
from ...kernels import Kernels
from .encoding import Codes, Head, codes_from, codes_of, head_bytes, head_from, head_of
from .words import Reader

__all__ = ["known_by", "sketch_from", "sketch_of"]

_SIZE = struct.Struct("<H")


def known_by(record: EpisodeRecord, reader: Reader, kernels: Kernels) -> tuple[Codes, Head]:
    """Static vector and head of the episode that this record becomes."""
    if record.question is not None and record.vectors is not None:
        static, head = _read(record.question, record.vectors, reader, kernels)
    else:
        static, head = sketch_from(record.sketch)
    return static, dataclasses.replace(head, space_version=record.space.version)


def sketch_of(question: Question, vectors: QuestionVectors, reader: Reader, kernels: Kernels) -> bytes:
    """Inverse of `sketch_from`."""
    static, head = _read(question, vectors, reader, kernels)
    values = static.values.tobytes()
    return _SIZE.pack(len(values)) + values + head_bytes(head)


def sketch_from(data: bytes) -> tuple[Codes, Head]:
    """Raises ValueError for what `sketch_of` did not write."""
    try:
        (size,) = _SIZE.unpack_from(data)
    except struct.error as error:
        raise ValueError(f"a question's sketch cannot be read: {error}") from error
    end = _SIZE.size + size
    if end > len(data):
        raise ValueError("a question's sketch is cut off")
    return codes_from(np.frombuffer(data[_SIZE.size : end], np.int8)), head_from(data[end:])


def _read(question: Question, vectors: QuestionVectors, reader: Reader, kernels: Kernels) -> tuple[Codes, Head]:
    if not question.system.strip():
        vectors = dataclasses.replace(vectors, system=None)
    before = reader.read(question.before) if question.before.strip() else None
    return codes_of(vectors.static, kernels), head_of(vectors, reader.read(question.text), "", kernels, before)
