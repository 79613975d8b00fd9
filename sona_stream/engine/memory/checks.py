"""Whether what is to be remembered can be: errors name the field and its limit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...episodes import EpisodeRecord, Question, QuestionVectors
from ...errors import InvalidRequest
from ...lora import HiddenSpace
from .sketch import sketch_from

__all__ = ["check_pairs", "check_person", "check_record"]

_MOST_DIMS = 4096


def check_record(record: EpisodeRecord, static_dim: int) -> None:
    """Raises InvalidRequest."""
    if record.question is None or record.vectors is None:
        _check_sketch(record.sketch, static_dim)
    else:
        _check_question(record.question, record.vectors, static_dim)
    check_pairs(record.hidden, record.token_ids, record.space)


def check_person(person: str | None) -> None:
    """Raises InvalidRequest for what names nobody: a store would look for everybody."""
    if person is not None and not person.startswith(("key:", "user:")):
        raise InvalidRequest(
            f"person must be key:ID or user:NAME, as the list names people; is {person[:80]!r} user:{person[:80]}?",
            param="person",
        )


def _check_question(question: Question, vectors: QuestionVectors, static_dim: int) -> None:
    if not question.text.strip():
        raise InvalidRequest(
            "question.text must not be empty: there is nothing to know it again by", param="question"
        )
    _check_vector(vectors.static, "vectors.static", static_dim)
    if vectors.contextual is not None:
        _check_vector(vectors.contextual, "vectors.contextual", None)
    if vectors.before is not None:
        _check_vector(vectors.before, "vectors.before", None)
    if question.system.strip():
        if vectors.system is None:
            raise InvalidRequest("vectors.system must be given with question.system", param="vectors.system")
        _check_vector(vectors.system, "vectors.system", static_dim)


def _check_sketch(sketch: bytes, static_dim: int) -> None:
    if not sketch:
        raise InvalidRequest("question and vectors, or a sketch of them, must be given", param="question")
    try:
        static, head = sketch_from(sketch)
        head.features  # noqa: B018 - reads them
    except ValueError as error:
        raise InvalidRequest(f"sketch: {error}", param="sketch") from error
    if static.values.shape != (static_dim,):
        raise InvalidRequest(
            f"sketch must be of {static_dim} dimensions, not {static.values.shape}", param="sketch"
        )


def check_pairs(hidden: NDArray[np.float32], token_ids: NDArray[np.int32], space: HiddenSpace) -> None:
    """Raises InvalidRequest."""
    dim = len(space.mean)
    if hidden.ndim != 2 or not len(hidden) or hidden.shape[1] != dim:
        raise InvalidRequest(f"hidden must have shape (tokens, {dim}), not {hidden.shape}", param="hidden")
    if token_ids.shape != hidden.shape[:1]:
        raise InvalidRequest(f"token_ids must be {len(hidden)} numbers, not {token_ids.shape}", param="token_ids")
    if space.spread.shape != space.mean.shape or not (space.spread > 0).all():
        raise InvalidRequest(f"space.spread must be {dim} numbers above 0", param="space")
    for name, values in (("hidden", hidden), ("space.mean", space.mean), ("space.spread", space.spread)):
        if not np.isfinite(values).all():
            raise InvalidRequest(f"every entry of {name} must be a finite number", param=name)


def _check_vector(vector: NDArray[Any], name: str, dim: int | None) -> None:
    if vector.ndim != 1 or not 0 < len(vector) <= _MOST_DIMS or (dim is not None and len(vector) != dim):
        raise InvalidRequest(f"{name} must have shape ({dim or 'n'},), not {vector.shape}", param=name)
    if not np.isfinite(vector).all():
        raise InvalidRequest(f"every entry of {name} must be a finite number", param=name)
