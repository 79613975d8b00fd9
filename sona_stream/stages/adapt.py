"""Adapt: names the adapter that the host shall apply to this request's hidden states."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..events import AdapterRef, Event, Request
from ..protocols import AdapterResolver, Handler, Middleware

__all__ = ["adapt"]


def adapt(resolver: AdapterResolver) -> Middleware:
    """Requests with tools or a JSON schema are left alone, as are those with `x-sona-adapt: off`."""

    def middleware(handler: Handler) -> Handler:
        @asynccontextmanager
        async def handle(request: Request) -> AsyncIterator[AsyncIterator[Event]]:
            async with handler(dataclasses.replace(request, adapter=_choose(resolver, request))) as events:
                yield events

        return handle

    return middleware


def _choose(resolver: AdapterResolver, request: Request) -> AdapterRef | None:
    if not request.adapt:
        return None
    if request.pinned is not None:
        return request.pinned
    return None if request.constrained else resolver.resolve(request)
