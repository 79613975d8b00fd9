"""`/v1/sona/*`: what was learned, and the switches. For keys with the role `admin`, over all tenants."""

from __future__ import annotations

from ..errors import InvalidRequest
from .incoming import Call, read_json, read_query, refuse_unknown
from .responses import Response, json_response

__all__ = ["adapters", "diff", "freeze", "patterns", "rollback", "show", "stats", "thaw"]

_VERSIONS = 1 << 31


async def stats(call: Call) -> Response:
    """`GET /v1/sona/stats`."""
    return json_response(await call.app.services.stats())


async def patterns(call: Call) -> Response:
    """`GET /v1/sona/patterns`."""
    return json_response({"object": "list", "data": list(await call.app.services.patterns())})


async def adapters(call: Call) -> Response:
    """`GET /v1/sona/adapters`, or with ``?tenant=T`` those of one tenant and its end users."""
    tenant = read_query(call, "tenant").get("tenant")
    return json_response({"object": "list", "data": list(await call.app.services.adapters(tenant))})


async def show(call: Call) -> Response:
    """`GET /v1/sona/adapters/show?key=model/tenant/group&version=N`."""
    key, (version,) = _asked(call, "version")
    return json_response(await call.app.services.adapter(key, version))


async def diff(call: Call) -> Response:
    """`GET /v1/sona/adapters/diff?key=model/tenant/group&from=N&to=M`; 0 is the base model."""
    key, (one, other) = _asked(call, "from", "to")
    return json_response(await call.app.services.difference(key, one, other))


def _asked(call: Call, *names: str) -> tuple[str, list[int]]:
    """The key and these version numbers of the query string."""
    query = read_query(call, "key", *names)
    if "key" not in query:
        raise InvalidRequest("key must name an adapter: model/tenant/group", param="key")
    numbers = []
    for name in names:
        text = query.get(name, "")
        if not (text.isascii() and text.isdigit() and int(text) < _VERSIONS):
            raise InvalidRequest(f"{name} must be a whole number from 0 (the base model) up", param=name)
        numbers.append(int(text))
    return query["key"], numbers


async def rollback(call: Call) -> Response:
    """`POST /v1/sona/adapters/rollback` with ``{key, version}``; version 0 is the base model."""
    body = await read_json(call)
    key, version = body.get("key"), body.get("version")
    if not isinstance(key, str) or not key:
        raise InvalidRequest("key must name an adapter: model/tenant/group", param="key")
    if not isinstance(version, int) or isinstance(version, bool) or not 0 <= version < _VERSIONS:
        raise InvalidRequest("version must be a whole number from 0 (the base model) up", param="version")
    refuse_unknown(body, ("key", "version"))
    return json_response(await call.app.services.rollback(key, version))


async def freeze(call: Call) -> Response:
    """`POST /v1/sona/freeze`: no new version is published until `thaw`."""
    return json_response(await call.app.services.freeze())


async def thaw(call: Call) -> Response:
    """`POST /v1/sona/thaw`."""
    return json_response(await call.app.services.thaw())
