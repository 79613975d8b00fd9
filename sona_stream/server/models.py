"""`/v1/models`: what the configuration names, and the alias that routes."""

from __future__ import annotations

from ..config.settings import WILDCARD
from ..errors import NotFound
from ..wire import encode_model, encode_models
from .incoming import Call
from .responses import Response

__all__ = ["AUTO", "get_model", "list_models"]

AUTO = "sona/auto"


async def list_models(call: Call) -> Response:
    """`GET /v1/models`."""
    return Response(200, encode_models(_names(call), created=call.app.created))


async def get_model(call: Call) -> Response:
    """`GET /v1/models/{id}`; ids may hold slashes."""
    if call.argument not in _names(call):
        raise NotFound(f"the model {call.argument[:200]!r} does not exist")
    return Response(200, encode_model(call.argument, created=call.app.created))


def _names(call: Call) -> list[str]:
    return [AUTO, *(name for name in call.app.model_names if name != WILDCARD)]
