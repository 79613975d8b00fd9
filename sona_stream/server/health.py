"""`/health/*` and `/metrics`: for probes and scrapers, without a key and without anything that is anybody's."""

from __future__ import annotations

import asyncio

from .incoming import Call
from .responses import Response, json_response

__all__ = ["liveness", "metrics", "readiness"]


async def liveness(call: Call) -> Response:
    """The process answers."""
    return json_response({"status": "ok"})


async def readiness(call: Call) -> Response:
    """A model answers; until then 503 with the reason."""
    await call.app.services.readiness()
    return json_response({"status": "ready"})


async def metrics(call: Call) -> Response:
    """Prometheus' text format; OpenMetrics for those who ask for it."""
    from prometheus_client.exposition import choose_encoder

    encode, kind = choose_encoder(call.headers.get(b"accept", b"").decode("latin-1"))
    # Collectors may take their time: not on the event loop.
    body = await asyncio.to_thread(encode, call.app.services.registry)
    return Response(200, body, ((b"content-type", kind.encode()),))
