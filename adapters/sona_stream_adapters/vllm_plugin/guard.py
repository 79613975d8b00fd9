"""Keeps inference clients from binding adapters: only who shows the control key may send ``sona*`` arguments.

Whatever route a body goes to, arguments beginning with ``sona`` are taken out of every ``vllm_xargs`` (and of
``extra_args``, as vLLM calls them further inside), and a tenant after the model's name goes. What cannot be read
but may hold them is refused.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Collection
from typing import Any

from .hook_watch import HookWatch
from .messages import (
    CONTROL_HEADER,
    HOOK_HEADER,
    INSTANCE_HEADER,
    PREFIX,
    App,
    Message,
    Receive,
    Scope,
    Send,
    Unanswered,
    failure,
    header,
    holds_key,
    read_body,
    reply,
)

__all__ = ["Guard", "Stripped", "replaying", "stripped", "with_body"]

_ARGUMENTS = ("vllm_xargs", "extra_args")
_PREFIX = "sona"
# JSON may spell any of these letters as \u00XX; a body in UTF-16 or UTF-32 has zero bytes.
_HINTS = re.compile(rb"sona|\\u00[4-7]|\x00", re.IGNORECASE)
_MOST_TOLD = 300
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})

Stripped = tuple[bytes, bool]
"""(body, whether it was changed)."""


class Guard:
    """ASGI middleware around vLLM's routes. Those who show the key pass untouched, unless they name another engine
    start than ours: then they are told (409), so that they put their adapters again first. Those who name ours are
    told with the answer when the hook is off and nothing of theirs is bound.
    """

    def __init__(
        self,
        app: App,
        *,
        key: bytes,
        instance: Callable[[], str],
        watch: HookWatch,
        models: Callable[[], Collection[str]],
        count: Callable[[str], None],
    ) -> None:
        self._app, self._key = app, key
        self._instance, self._watch, self._models, self._count = instance, watch, models, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope.get("method") not in _WITH_BODY or _is_control(scope):
            await self._app(scope, receive, send)
            return
        try:
            if header(scope, CONTROL_HEADER):
                self._check_caller(scope)
                body = None
                send = self._telling(send) if header(scope, INSTANCE_HEADER) else send
            else:
                body = await read_body(receive, None)
                scope, body = self._cleaned(scope, body)
        except Unanswered as refusal:
            await reply(send, failure(refusal))
            return
        except ConnectionError:
            return
        await self._app(scope, receive if body is None else replaying(body, receive), send)

    def _check_caller(self, scope: Scope) -> None:
        if not holds_key(scope, self._key, bearer=False):
            self._count("refused_keys")
            raise Unanswered(401, "x-sona-control is not this server's SONA_VLLM_KEY", kind="invalid_control_key")
        believed = header(scope, INSTANCE_HEADER).decode("latin-1")
        if believed and believed != self._instance():
            raise Unanswered(409, "this server was started again: put its adapters first", kind="instance_changed")

    def _telling(self, send: Send) -> Send:
        """Asked while the request is on its way to the engine, so that the answer waits for nothing; and once more
        when the answer begins, which is the end of one that is not streamed.
        """
        asked = self._watch.begin()

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                before = await asyncio.shield(asked)
                off = before or await self._watch.off()
                told = " ".join(off.encode("ascii", "replace").decode().split())[:_MOST_TOLD]
                when = "before" if before else "during"
                own = [(HOOK_HEADER, f"{when}: {told}".encode())] if off else []
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        return telling

    def _cleaned(self, scope: Scope, body: bytes) -> tuple[Scope, bytes]:
        kind = header(scope, b"content-type")
        cleaned, changed = stripped(body, multipart=kind.lower().startswith(b"multipart/"))
        named = _without_tenant(cleaned, self._models())
        if changed or named is not None:
            self._count("stripped_requests")
            cleaned = cleaned if named is None else named
            return with_body(scope, cleaned), cleaned
        return scope, body


def _is_control(scope: Scope) -> bool:
    """Whether this goes to our own routes, which look at the key themselves."""
    path = str(scope["path"]).removeprefix(str(scope.get("root_path") or ""))
    return path.startswith(f"{PREFIX}/")


def stripped(body: bytes, *, multipart: bool = False) -> Stripped:
    """The body without ``sona*`` arguments; the same object when it has none. Raises Unanswered when that cannot be
    told.
    """
    if not _HINTS.search(body):
        return body, False
    if multipart:
        if b"vllm_xargs" in body and _PREFIX.encode() in body.lower():
            raise Unanswered(400, "vllm_xargs in a form must not hold sona arguments", param="vllm_xargs")
        return body, False
    found: list[str] = []
    try:
        value = json.loads(body, object_pairs_hook=lambda pairs: _object(pairs, found))
    except (ValueError, RecursionError):
        if any(name.encode() in body for name in _ARGUMENTS) or b"\x00" in body or b"\\u" in body:
            raise Unanswered(400, "the body cannot be read as JSON") from None
        return body, False
    return (json.dumps(value).encode(), True) if found else (body, False)


def _object(pairs: list[tuple[str, Any]], found: list[str]) -> dict[str, Any]:
    """Every pair is looked at: of a name that comes twice another reader may take the first."""
    made = {}
    for name, value in pairs:
        if name in _ARGUMENTS and isinstance(value, dict):
            ours = [one for one in value if one.lower().startswith(_PREFIX)]
            found += ours
            value = {one: what for one, what in value.items() if one not in ours}
        made[name] = value
    return made


def _without_tenant(body: bytes, models: Collection[str]) -> bytes | None:
    """The body with ``model`` instead of ``model@tenant``; None when it names no tenant of a model of ours."""
    if b"@" not in body and b"\\u0040" not in body:
        return None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    name = value.get("model") if isinstance(value, dict) else None
    if not isinstance(name, str) or "@" not in name or name in models:
        return None
    base = name.rpartition("@")[0]
    return json.dumps({**value, "model": base}).encode() if base in models else None


def with_body(scope: Scope, body: bytes) -> Scope:
    """The scope for another body."""
    length = (b"content-length", str(len(body)).encode())
    kept = [pair for pair in scope["headers"] if pair[0].lower() not in (b"content-length", b"transfer-encoding")]
    return {**scope, "headers": [*kept, length]}


def replaying(body: bytes, receive: Receive) -> Receive:
    """Gives the body once more, then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
