"""Adapt: names the adapter that the host shall apply to this request's hidden states."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from ..events import AdapterRef, Event, Head, Request
from ..protocols import AdapterResolver, EventStream, Handler, Middleware

__all__ = ["adapt"]


def adapt(resolver: AdapterResolver) -> Middleware:
    """Requests with `x-sona-adapt: off` are left alone. The resolver may have a reason of its own to leave one
    alone: the answer's `Head` says it.
    """

    def middleware(handler: Handler) -> Handler:
        def handle(request: Request) -> EventStream:
            adapter = _choose(resolver, request)
            named = request if adapter == request.adapter else dataclasses.replace(request, adapter=adapter)
            if adapter is not None and not resolver.at_hand(request, adapter):
                return _brought(handler, named, adapter, resolver)
            events = handler(named)
            asked = request.adapt and request.pinned is None
            reason = resolver.bare_reason(request) if asked and adapter is None else ""
            return _told(events, reason) if reason else events

        return handle

    return middleware


def _choose(resolver: AdapterResolver, request: Request) -> AdapterRef | None:
    if not request.adapt:
        return None
    if request.pinned is not None:
        # A model that stands in for the one asked for has not this adapter.
        return request.pinned if request.pinned.key.rsplit("/", 2)[0] == request.model else None
    return resolver.resolve(request)


@asynccontextmanager
async def _brought(
    handler: Handler, request: Request, adapter: AdapterRef, resolver: AdapterResolver
) -> AsyncIterator[AsyncIterator[Event]]:
    """The host had to let it go for others."""
    await resolver.bring(request, adapter)
    async with handler(request) as events:
        yield events


@asynccontextmanager
async def _told(stream: EventStream, reason: str) -> AsyncIterator[AsyncIterator[Event]]:
    async with stream as events, aclosing(_stamped(events, reason)) as stamped:
        yield stamped


async def _stamped(events: AsyncIterator[Event], reason: str) -> AsyncGenerator[Event, None]:
    async for event in events:
        yield dataclasses.replace(event, bare_reason=reason) if isinstance(event, Head) else event
