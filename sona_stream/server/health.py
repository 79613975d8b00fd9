"""`/health/*` and `/metrics`: for probes and scrapers, without a key and without anything that is anybody's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .incoming import Call
from .responses import Response, json_response

if TYPE_CHECKING:
    from prometheus_client import Metric
    from prometheus_client.registry import Collector

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
    services = call.app.services
    live = [family for one in services.live for family in one.collect()]
    # Thousands of series may take their time: not on the event loop.
    body = await asyncio.to_thread(encode, _Together(services.registry, live))
    return Response(200, body, ((b"content-type", kind.encode()),))


class _Together:
    """A collector: of what may be asked from any thread, and what was asked already."""

    def __init__(self, registry: Collector, told: Sequence[Metric]) -> None:
        self._registry, self._told = registry, told

    def collect(self) -> Iterator[Metric]:
        yield from self._registry.collect()
        yield from self._told
