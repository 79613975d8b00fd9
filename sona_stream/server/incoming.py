"""One HTTP request as the endpoints see it."""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from ..errors import InvalidRequest, RequestTooLarge
from ..events import Principal
from .responses import Receive, Send

if TYPE_CHECKING:
    from .asgi import App

__all__ = ["Call", "ClientLeft", "new_id", "open_call", "read_body", "read_json", "read_query", "refuse_unknown"]


class ClientLeft(Exception):
    """The client disconnected before its request was all there: nobody waits for an answer."""


@dataclasses.dataclass(slots=True)
class Call:
    """Alive for one request. ``headers`` has the last of repeated ones; ``raw_headers`` all of them."""

    app: App
    receive: Receive
    send: Send
    raw_headers: Sequence[tuple[bytes, bytes]]
    headers: Mapping[bytes, bytes]
    id: str
    received_at: float
    """``time.time()``"""
    began: float
    """``time.perf_counter()``"""
    principal: Principal = dataclasses.field(default_factory=Principal)
    argument: str = ""
    """What stands in the path after the route's own part."""
    query: bytes = b""
    head_only: bool = False
    told: bool = False
    """Whether the endpoint itself tells its client when the server cuts it off."""

    def asked(self, name: str) -> bool:
        """Whether the query string has ``name`` set to something that means yes."""
        values = parse_qs(self.query.decode("latin-1"), keep_blank_values=True).get(name, ["0"])
        return values[-1].lower() not in ("0", "false", "no")


def new_id() -> str:
    """A request's id: nobody can guess it, so it cannot be used to judge other people's answers."""
    return f"req-{secrets.token_hex(16)}"


def open_call(app: App, scope: Mapping[str, Any], receive: Receive, send: Send) -> Call:
    """The call of an ASGI scope; nothing is read yet."""
    headers = scope["headers"]
    return Call(
        app=app,
        receive=receive,
        send=send,
        raw_headers=headers,
        headers=dict(headers),
        id=new_id(),
        received_at=time.time(),
        began=time.perf_counter(),
        query=scope.get("query_string", b""),
        head_only=scope["method"] == "HEAD",
    )


def read_query(call: Call, *names: str) -> dict[str, str]:
    """The last value of each name in the query string. Raises `InvalidRequest` for a name that is none of these,
    and for an empty value: one that is overlooked would be a filter less.
    """
    given = parse_qs(call.query.decode("utf-8", "replace"), keep_blank_values=True)
    query = {name: values[-1] for name, values in given.items()}
    refuse_unknown(query, names)
    for name, value in query.items():
        if not value.strip():
            raise InvalidRequest(f"{name} is empty; leave it out, or say which", param=name)
    return query


def refuse_unknown(given: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raises `InvalidRequest` that says what there is."""
    if unknown := sorted(set(given) - set(names)):
        raise InvalidRequest(
            f"{unknown[0][:80]!r} is not a field here (there are: {', '.join(names)})", param=unknown[0][:80]
        )


async def read_body(call: Call) -> bytes:
    """The whole body. Raises `RequestTooLarge`, `InvalidRequest`, or `ClientLeft`."""
    limit = call.app.max_body
    if call.headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise InvalidRequest("a compressed body (content-encoding) is not accepted here")
    announced = call.headers.get(b"content-length", b"")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await call.receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def read_json(call: Call) -> dict[str, Any]:
    """The body as a JSON object. Off the hot path: answers are decoded by `wire`."""
    body = await read_body(call)
    try:
        value = json.loads(body)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequest("the body holds half of a surrogate pair, which is not Unicode") from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(value).__name__}")
    return value


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"the body is larger than {limit >> 20} MiB (`sona.max_body_mb`)")
