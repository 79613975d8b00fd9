"""Measure: what a backend took, and what this program took on top of it, as Prometheus histograms.

`measure` stands around each backend, `overhead` around the whole pipeline; they share a `Meter`. Names follow
OpenTelemetry's gen_ai conventions (https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

from ..errors import SonaError
from ..events import Delta, Event, Finish, Request
from ..protocols import Handler, Middleware

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Histogram

__all__ = ["Meter", "measure", "overhead"]

# The bucket bounds that OpenTelemetry advises, in seconds.
_DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_OPERATIONS = {"chat.completions": "chat", "completions": "text_completion"}


class Meter:
    """The histograms, and the seconds that each running request has waited for backends so far.

    Labels are bounded: models are those of the configuration (``*`` for a wildcard's), errors our own codes.
    Raises ValueError when the collectors are in the registry already. Belongs to one event loop.
    """

    def __init__(self, registry: CollectorRegistry, *, clock: Callable[[], float] = time.perf_counter) -> None:
        from prometheus_client import Histogram

        operation = ("gen_ai_operation_name", "gen_ai_request_model")
        self.clock = clock
        self.waited: dict[str, float] = {}
        self.duration = Histogram(
            "gen_ai_client_operation_duration_seconds",
            "One attempt at a backend, from the request to its last byte, by how it ended.",
            (*operation, "error_type"),
            registry=registry,
            buckets=_DURATION,
        )
        self.first_chunk = Histogram(
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "From the request to a backend to the first increment of its answer.",
            operation,
            registry=registry,
            buckets=_FIRST,
        )
        self.overhead = Histogram(
            "sona_overhead_seconds",
            "Time of a complete answer from its request's arrival on, without waiting for backends or the client.",
            operation,
            registry=registry,
            buckets=_OVERHEAD,
        )
        self._children: dict[tuple[int, str, str, str], Histogram] = {}

    def child(self, histogram: Histogram, operation: str, model: str, *error: str) -> Histogram:
        """A labelled child, looked up once: `labels` costs as much as `observe`."""
        key = (id(histogram), operation, model, error[0] if error else "")
        if key not in self._children:
            self._children[key] = histogram.labels(operation, model, *error)
        return self._children[key]


class _Lap:
    """One attempt at a backend."""

    __slots__ = ("asked", "began", "finished", "first", "waited")

    def __init__(self, now: float) -> None:
        self.began = now
        self.asked: float | None = now
        """Since when the backend is waited for; None while it is not."""
        self.waited = 0.0
        self.first: float | None = None
        self.finished = False


def measure(meter: Meter, model: str) -> Middleware:
    """Around one backend, whose ``model_name`` is the label. Failed and cancelled attempts count under their
    error's code.
    """

    def middleware(handler: Handler) -> Handler:
        @asynccontextmanager
        async def handle(request: Request) -> AsyncIterator[AsyncIterator[Event]]:
            lap, error = _Lap(meter.clock()), ""
            try:
                async with handler(request) as events, aclosing(_timed(events, lap, meter.clock)) as timed:
                    yield timed
            except (asyncio.CancelledError, GeneratorExit):
                error = "cancelled"
                raise
            except BaseException as caught:
                error = caught.code if isinstance(caught, SonaError) else "internal_error"
                raise
            finally:
                _close(meter, lap, request, model, error or ("" if lap.finished else "cancelled"))

        return handle

    return middleware


async def _timed(
    events: AsyncIterator[Event], lap: _Lap, clock: Callable[[], float]
) -> AsyncGenerator[Event, None]:
    asked = lap.began  # entering the backend counts too
    async for event in events:
        now = clock()
        lap.waited += now - asked
        lap.asked = None
        if isinstance(event, Delta):
            if lap.first is None:
                lap.first = now
        elif isinstance(event, Finish):
            lap.finished = True
        yield event
        lap.asked = asked = clock()


def _close(meter: Meter, lap: _Lap, request: Request, model: str, error: str) -> None:
    now = meter.clock()
    operation = _OPERATIONS[request.endpoint]
    meter.child(meter.duration, operation, model, error).observe(now - lap.began)
    if lap.first is not None:
        meter.child(meter.first_chunk, operation, model).observe(lap.first - lap.began)
    if request.id in meter.waited:
        meter.waited[request.id] += lap.waited + (now - lap.asked if lap.asked is not None else 0.0)


def overhead(meter: Meter, models: frozenset[str]) -> Middleware:
    """Around the whole pipeline. ``models``: the names that are a label of their own, all others are ``other``."""

    def middleware(handler: Handler) -> Handler:
        @asynccontextmanager
        async def handle(request: Request) -> AsyncIterator[AsyncIterator[Event]]:
            before = max(0.0, time.time() - request.received_at) if request.received_at else 0.0
            lent, began = _Lent(), meter.clock()
            meter.waited[request.id] = 0.0
            try:
                async with handler(request) as events, aclosing(_lending(events, lent, meter.clock)) as lending:
                    yield lending
                total = before + meter.clock() - began
            finally:
                waited = meter.waited.pop(request.id)
            if lent.finished:
                model = lent.model if lent.model in models else "other"
                child = meter.child(meter.overhead, _OPERATIONS[request.endpoint], model)
                child.observe(max(0.0, total - waited - lent.seconds))

        return handle

    return middleware


class _Lent:
    """Time that the consumer held an event, for instance writing it to a client that reads slowly."""

    __slots__ = ("finished", "model", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.model = ""
        self.finished = False


async def _lending(
    events: AsyncIterator[Event], lent: _Lent, clock: Callable[[], float]
) -> AsyncGenerator[Event, None]:
    async for event in events:
        if isinstance(event, Finish):
            lent.finished = True
        elif not isinstance(event, Delta):
            lent.model = event.model
        since = clock()
        yield event
        lent.seconds += clock() - since
