"""Error bodies and error events in OpenAI's form."""

from __future__ import annotations

import msgspec

from ..errors import InvalidRequest, SonaError
from .sse import encode_event

__all__ = ["encode_error", "encode_error_event", "error_body"]

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


class _Error(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class _ErrorBody(msgspec.Struct):
    error: _Error


_encode = msgspec.json.Encoder().encode


def error_body(message: str, *, status: int, code: str | None = None, param: str | None = None) -> bytes:
    """``{"error": {message, type, param, code}}``; the type follows from the HTTP status."""
    kind = _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    return _encode(_ErrorBody(_Error(_encodable(message), kind, param, code)))


def encode_error(error: SonaError) -> bytes:
    """The body for an error of ours."""
    param = error.param if isinstance(error, InvalidRequest) else None
    return error_body(str(error), status=error.status, code=error.code, param=param)


def encode_error_event(error: SonaError) -> bytes:
    """What ends a stream that broke after its first byte: an error event, and no ``[DONE]`` after it."""
    return encode_event(encode_error(error))


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
