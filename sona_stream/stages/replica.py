"""Replica: a deployment that is not what its model's other deployments are answers for itself alone."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

from ..errors import NotReady
from ..events import Event, Head, Request
from ..protocols import EventStream, Handler, Middleware

__all__ = ["replica"]


def replica(standing: Callable[[], str]) -> Middleware:
    """``standing`` says why this deployment's answers are neither adapted nor learned from; empty: they are. What
    it raises is raised before the request is sent, so that another deployment is tried. For a request that pins an
    adapter its reason is raised, too.
    """

    def middleware(handler: Handler) -> Handler:
        def handle(request: Request) -> EventStream:
            reason = standing()
            if not reason:
                return handler(request)
            if request.pinned is not None:
                raise NotReady(reason)
            apart = dataclasses.replace(request, adapt=False, learn=False, adapter=None, episodes=())
            return _told(handler, apart, reason)

        return handle

    return middleware


@asynccontextmanager
async def _told(handler: Handler, request: Request, reason: str) -> AsyncIterator[AsyncIterator[Event]]:
    async with handler(request) as events, aclosing(_stamped(events, reason)) as stamped:
        yield stamped


async def _stamped(events: AsyncIterator[Event], reason: str) -> AsyncGenerator[Event, None]:
    """The reason on the head: nothing of this answer is captured."""
    async for event in events:
        yield dataclasses.replace(event, no_capture=reason) if isinstance(event, Head) else event
