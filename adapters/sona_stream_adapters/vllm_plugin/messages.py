"""HTTP for the plug-in's own routes, on bare ASGI: vLLM brings its web framework, and this one asks for none."""

from __future__ import annotations

import dataclasses
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qs

__all__ = [
    "CONTROL_HEADER",
    "HOOK_HEADER",
    "INSTANCE_HEADER",
    "PREFIX",
    "TENSORS",
    "Answer",
    "App",
    "Message",
    "Question",
    "Receive",
    "Scope",
    "Send",
    "Unanswered",
    "failure",
    "header",
    "holds_key",
    "question",
    "read_body",
    "reply",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CONTROL_HEADER = b"x-sona-control"
"""Bears the key of those who may bind and write adapters."""
INSTANCE_HEADER = b"x-sona-instance"
"""The engine start that a caller believes to speak to."""
HOOK_HEADER = b"x-sona-hook"
"""Of an answer to a bound request: ``before: reason`` when the hook was found off while the request was on its way
to the engine, ``during: reason`` when only later. Not there while it works. A look can be overtaken by the answer:
what the engine tells of a capture id under ``unserved`` is exact.
"""
PREFIX = "/v1/sona"
"""Where our own routes are."""
TENSORS = b"application/vnd.safetensors"


class Unanswered(Exception):
    """What the caller is told instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.more = status, kind, param, more


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """One call of a route of ours, its body read."""

    query: Mapping[str, list[str]]
    body: bytes

    def text(self, name: str) -> str:
        """A parameter of the address that must be there."""
        values = self.query.get(name)
        if not values or not values[0]:
            raise Unanswered(400, f"the parameter {name} is missing", param=name)
        return values[0]

    def number(self, name: str, default: int | None = None) -> int:
        """The same, a whole number of at least 0."""
        if default is not None and name not in self.query:
            return default
        text = self.text(name)
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise Unanswered(400, f"{name} must be a whole number of at least 0, not {text[:50]!r}", param=name)
        return int(text)


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """JSON, or safetensors when ``body`` is bytes."""

    body: bytes | Mapping[str, Any]
    status: int = 200


def header(scope: Scope, name: bytes) -> bytes:
    """The first value of a header (``name`` in lower case); empty when it is not there."""
    for key, value in scope.get("headers") or ():
        if key.lower() == name:
            return bytes(value)
    return b""


def holds_key(scope: Scope, key: bytes, *, bearer: bool) -> bool:
    """Whether the caller shows our key, compared in constant time. ``bearer``: in `authorization`, too."""
    shown = header(scope, CONTROL_HEADER)
    if not shown and bearer:
        scheme, _, token = header(scope, b"authorization").partition(b" ")
        shown = token.strip() if scheme.lower() == b"bearer" else b""
    return hmac.compare_digest(shown, key)


async def read_body(receive: Receive, limit: int | None, param: str = "body") -> bytes:
    """The whole body. Raises Unanswered (413) beyond ``limit`` bytes, ConnectionError when the caller left."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the caller left before its body was read")
        part = message.get("body", b"")
        size += len(part)
        if limit is not None and size > limit:
            raise Unanswered(413, f"the {param} has more than {limit} bytes", kind="request_too_large", param=param)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def question(scope: Scope, body: bytes) -> Question:
    """The parts of a call that routes look at."""
    query = bytes(scope.get("query_string") or b"").decode("utf-8", "replace")
    return Question(parse_qs(query, keep_blank_values=True), body)


def failure(refusal: Unanswered) -> Answer:
    """A refusal in OpenAI's form."""
    error = {"message": str(refusal), "type": refusal.kind, "param": refusal.param, "code": refusal.kind}
    return Answer({"error": {**error, **refusal.more}}, refusal.status)


async def reply(send: Send, answer: Answer) -> None:
    """Send a whole answer."""
    if isinstance(answer.body, bytes):
        kind, body = TENSORS, answer.body
    else:
        kind, body = b"application/json", json.dumps(answer.body).encode()
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
