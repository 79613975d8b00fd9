"""The model's name inside a JSON body: read it, and replace it without touching another byte."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from ..errors import InvalidRequest

__all__ = ["check_model", "read_model", "replace_model"]

_MAX_NAME = 256
_KEY = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*')
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\],]', re.DOTALL)
_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")


class _Named(msgspec.Struct):
    model: str | None = None


_decode = msgspec.json.Decoder(_Named).decode


def read_model(body: bytes) -> str:
    """The top-level ``model``; the rest of the body is skipped over. Raises `InvalidRequest`."""
    name = _named(body)
    if name is None:
        raise InvalidRequest("model is required", param="model")
    check_model(name)
    return name


def check_model(name: str) -> None:
    """A name ends up in headers, logs and records. Raises `InvalidRequest`."""
    if not (0 < len(name) <= _MAX_NAME and name.isprintable()):
        raise InvalidRequest(f"model must have 1 to {_MAX_NAME} printable characters", param="model")


def replace_model(body: bytes, name: str) -> bytes:
    """The body with the top-level ``model`` set to ``name``; every other byte stays as it is.

    The very same object comes back when the name is right already. Raises `InvalidRequest` when the body is no
    JSON object or ``model`` is no string.
    """
    old = _named(body)
    new = msgspec.json.encode(name)
    if old == name:
        return body
    if old is None and b"model" not in body and b"\\u" not in body:
        return _inserted(body, new)
    # Nearly always the key is there once, spelled plainly; then one search finds it.
    spots = [match.end() for match in _KEY.finditer(body)]
    if len(spots) == 1 and body[spots[0] : spots[0] + 1] == b'"':
        spliced = _spliced(body, spots, new)
        if _decode(spliced).model == name:
            return spliced
    spots = list(_model_values(body))
    return _spliced(body, spots, new) if spots else _inserted(body, new)


def _named(body: bytes) -> str | None:
    try:
        return _decode(body).model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not a JSON object with a model: {error}", param="model") from None


def _inserted(body: bytes, new: bytes) -> bytes:
    start = body.index(b"{") + 1
    comma = b"" if body[start:].lstrip().startswith(b"}") else b","
    return body[:start] + b'"model":' + new + comma + body[start:]


def _spliced(body: bytes, spots: list[int], new: bytes) -> bytes:
    for spot in reversed(spots):
        end = spot + 4 if body[spot : spot + 4] == b"null" else _string_end(body, spot)
        body = body[:spot] + new + body[end:]
    return body


def _string_end(body: bytes, start: int) -> int:
    match = _TOKEN.match(body, start)
    if match is None or body[start : start + 1] != b'"':
        raise InvalidRequest("model must be a string", param="model")
    return match.end()


def _model_values(body: bytes) -> Iterator[int]:
    """Where the values of top-level keys that read "model" begin; duplicates are all given."""
    depth, key_next = 0, False
    for match in _TOKEN.finditer(body):
        token = match.group()
        if token in (b"{", b"["):
            depth += 1
            key_next = depth == 1
        elif token in (b"}", b"]"):
            depth -= 1
        elif token == b",":
            key_next = depth == 1
        elif key_next and depth == 1:
            key_next = False
            colon = _COLON.match(body, match.end())
            if colon and msgspec.json.decode(token) == "model":
                yield colon.end()
