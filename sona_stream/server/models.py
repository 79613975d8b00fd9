"""`/v1/models`: what can be asked for, and the alias that routes."""

from __future__ import annotations

from ..errors import NotFound
from ..wire import encode_model, encode_models
from .incoming import Call
from .responses import Response

__all__ = ["AUTO", "get_model", "list_models"]

AUTO = "sona/auto"


async def list_models(call: Call) -> Response:
    """`GET /v1/models`."""
    names = [AUTO, *await call.app.services.models()]
    return Response(200, encode_models(names, created=call.app.created))


async def get_model(call: Call) -> Response:
    """`GET /v1/models/{id}`; ids may hold slashes."""
    if call.argument != AUTO and call.argument not in await call.app.services.models():
        raise NotFound(f"the model {call.argument[:200]!r} does not exist")
    return Response(200, encode_model(call.argument, created=call.app.created))
