"""`/v1/embeddings`, as a server answers it (https://platform.openai.com/docs/api-reference/embeddings)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import msgspec

from ..errors import InvalidRequest

__all__ = ["EmbeddingsRequest", "decode_embeddings_request", "encode_embeddings"]

MAX_INPUTS = 2048
_FORMATS = ("float", "base64")


class EmbeddingsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be embedded, and how the vectors are to be written."""

    model: str
    texts: tuple[str, ...]
    base64: bool = False
    dimensions: int | None = None


class _Body(msgspec.Struct):
    model: str
    input: Any = None
    encoding_format: str | None = None
    dimensions: int | None = None


class _Embedding(msgspec.Struct):
    object: str
    index: int
    embedding: list[float] | str


class _Usage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class _Answer(msgspec.Struct):
    object: str
    data: list[_Embedding]
    model: str
    usage: _Usage


_decode = msgspec.json.Decoder(_Body).decode
_encode = msgspec.json.Encoder().encode


def decode_embeddings_request(body: bytes) -> EmbeddingsRequest:
    """Raises `InvalidRequest` that names the field and its limit; lists of token ids are not understood."""
    try:
        told = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body cannot be read: {error}") from None
    form = told.encoding_format or "float"
    if form not in _FORMATS:
        raise InvalidRequest(f"encoding_format must be float or base64, not {form[:40]!r}", param="encoding_format")
    return EmbeddingsRequest(
        model=told.model, texts=_texts(told.input), base64=form == "base64", dimensions=told.dimensions
    )


def encode_embeddings(model: str, vectors: Sequence[Sequence[float] | bytes], *, tokens: int) -> bytes:
    """A vector is numbers, or bytes (little-endian float32) that are written as base64."""
    data = [_Embedding("embedding", place, _written(vector)) for place, vector in enumerate(vectors)]
    return _encode(_Answer("list", data, model, _Usage(tokens, tokens)))


def _written(vector: Sequence[float] | bytes) -> list[float] | str:
    return base64.b64encode(vector).decode("ascii") if isinstance(vector, bytes) else list(vector)


def _texts(given: Any) -> tuple[str, ...]:
    texts = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list) else ()
    if not texts:
        raise InvalidRequest("input must be a text, or a list with at least one", param="input")
    if len(texts) > MAX_INPUTS:
        raise InvalidRequest(f"input must hold at most {MAX_INPUTS} texts, not {len(texts)}", param="input")
    for place, text in enumerate(texts):
        if isinstance(text, int | list):
            raise InvalidRequest("input must be text: token ids are not understood here", param="input")
        if not isinstance(text, str):
            raise InvalidRequest(f"input[{place}] must be a text, not {type(text).__name__}", param="input")
        if not text:
            raise InvalidRequest(f"input[{place}] must not be an empty text", param="input")
    return texts
