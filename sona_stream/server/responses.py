"""Whole answers, and errors as HTTP: the one place where the error tree meets status codes."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from ..errors import AuthenticationError, NotReady, SonaError, UpstreamError
from ..events import Headers
from ..wire import encode_error, error_body
from .headers import forwarded

__all__ = ["Receive", "Response", "Send", "error_response", "json_response", "send_response"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_log = logging.getLogger(__name__)

JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """An answer whose body is all there. ``content-length`` is added when it is sent."""

    status: int
    body: bytes
    headers: Headers = (JSON,)


def json_response(value: Any, status: int = 200) -> Response:
    """``value`` as JSON; numbers that JSON has not (NaN, infinity) become null."""
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False, default=_plain)
    except ValueError:
        text = json.dumps(_finite(value), separators=(",", ":"), default=_plain)
    return Response(status, text.encode())


def error_response(error: Exception) -> Response:
    """What the client is told. Errors that nobody raised on purpose are logged and told as nothing but 500."""
    if isinstance(error, UpstreamError):
        return _upstream_response(error)
    if isinstance(error, SonaError):
        extra = ((b"www-authenticate", b"Bearer"),) if isinstance(error, AuthenticationError) else ()
        if error.status >= 500 and not isinstance(error, NotReady):  # a probe asks often
            _log.warning("%s: %s", error.code, error)
        return Response(error.status, encode_error(error), (JSON, *extra))
    _log.error("a request failed", exc_info=error)
    body = error_body(
        "the server failed to handle this request; its log says why", status=500, code="internal_error"
    )
    return Response(500, body)


def _upstream_response(error: UpstreamError) -> Response:
    """The upstream's own error, byte for byte, when it sent one."""
    status = error.status if 400 <= error.status <= 599 else 502
    if error.body:
        return Response(status, error.body, forwarded(error.headers, verbatim=True))
    body = error_body(str(error), status=status, code=error.code)
    return Response(status, body, (JSON, *forwarded(error.headers, verbatim=False)))


async def send_response(
    send: Send, response: Response, extra: Sequence[tuple[bytes, bytes]], *, head: bool
) -> None:
    """``head``: the client asked with HEAD, so the body stays here."""
    length = (b"content-length", b"%d" % len(response.body))
    start = {
        "type": "http.response.start",
        "status": response.status,
        "headers": [*response.headers, length, *extra],
    }
    await send(start)
    await send({"type": "http.response.body", "body": b"" if head else response.body})


def _plain(value: object) -> object:
    """Scalars and arrays of numpy, sets, and whatever else the views of other rooms may hold."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


def _finite(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value
