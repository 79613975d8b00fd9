"""What is remembered word for word: `POST /v1/feedback/undo` for whoever gave it, `/v1/sona/memory` for admins."""

from __future__ import annotations

from typing import Any, get_args

from ..episodes import Scope
from ..errors import InvalidRequest
from ..wire import read_user
from .auth import asserted_user
from .feedback import judged
from .incoming import Call, read_json, read_query, refuse_unknown
from .responses import Response, json_response

__all__ = ["episodes", "export", "forget", "promote", "undo"]

_SCOPES: tuple[Scope, ...] = get_args(Scope)
_MOST = 100_000
_PAGE = 500
_LINES = (b"content-type", b"application/x-ndjson")


async def undo(call: Call) -> Response:
    """`POST /v1/feedback/undo`, optionally with ``{model, user, request_id}``: takes back the newest feedback of
    the asker that still stands, or the newest on that request that can be taken back. 409: it cannot be; nothing
    older is touched.
    """
    body = await _fields(call, "model", "user", "request_id")
    header = call.app.services.settings.sona.user_header
    principal = asserted_user(call.principal, call.headers, header, read_user(body.get("user")))
    named = _text(body, "request_id")
    request_id = None if named is None else (await judged(call, named, principal)).request_id
    return json_response(await call.app.services.undo(principal, _text(body, "model"), request_id))


async def episodes(call: Call) -> Response:
    """`GET /v1/sona/memory?tenant=&person=&scope=&limit=`: newest first."""
    query = read_query(call, "tenant", "person", "scope", "limit")
    limit = _whole(query, "limit", 1000, least=1, most=_MOST)
    scope = _scope(query, _SCOPES) if "scope" in query else None
    found = await call.app.services.episodes(query.get("tenant"), query.get("person"), scope, limit)
    return json_response({"object": "list", "data": list(found)})


async def export(call: Call) -> Response:
    """`GET /v1/sona/memory/export?tenant=&after=&limit=`: JSON lines by number. The header `x-sona-next` is the
    ``after`` of the next page; without it there is none. One that is made anew for another model meanwhile comes
    again, with another number and the same ``stored_at``, ``request_id`` and ``feedback_id``.
    """
    query = read_query(call, "tenant", "after", "limit")
    after = _whole(query, "after", 0, least=0, most=1 << 60)
    limit = _whole(query, "limit", _PAGE, least=1, most=_PAGE)
    lines, last = await call.app.services.export_episodes(query.get("tenant"), after, limit)
    more = () if last is None else ((b"x-sona-next", b"%d" % last),)
    return Response(200, lines, (_LINES, *more))


async def promote(call: Call) -> Response:
    """`POST /v1/sona/memory/promote` with ``{key, scope}``; the scope is `tenant` or `global`."""
    body = await _fields(call, "key", "scope")
    key, scope = _text(body, "key"), _scope(body, ("tenant", "global"))
    if key is None:
        raise InvalidRequest("key must name an episode; GET /v1/sona/memory lists them", param="key")
    return json_response(await call.app.services.promote(key, scope, by=call.principal.key_id))


async def forget(call: Call) -> Response:
    """`POST /v1/sona/memory/forget` with ``{keys}``, ``{tenant}`` or ``{tenant, person}``."""
    body = await _fields(call, "keys", "tenant", "person")
    keys = body.get("keys")
    if keys is not None and not (isinstance(keys, list) and keys and all(isinstance(key, str) for key in keys)):
        raise InvalidRequest("keys must be a list of episodes' keys", param="keys")
    return json_response(await call.app.services.forget(_text(body, "tenant"), keys, _text(body, "person")))


def _whole(query: dict[str, Any], name: str, default: int, *, least: int, most: int) -> int:
    value = query.get(name, str(default))
    if not (value.isascii() and value.isdigit() and len(value) < 20 and least <= int(value) <= most):
        raise InvalidRequest(f"{name} must be a whole number from {least} to {most}", param=name)
    return int(value)


async def _fields(call: Call, *names: str) -> dict[str, Any]:
    body = await read_json(call)
    refuse_unknown(body, names)
    return body


def _text(given: dict[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not (isinstance(value, str) and value.strip()):
        raise InvalidRequest(f"{name} must be a text that is not empty", param=name)
    return value


def _scope(given: dict[str, Any], scopes: tuple[Scope, ...]) -> Scope:
    for scope in scopes:
        if given.get("scope") == scope:
            return scope
    raise InvalidRequest(f"scope must be one of {', '.join(scopes)}", param="scope")
