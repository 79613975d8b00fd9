"""Recall: names the remembered answers that the host may draw on for this request."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from ..events import EpisodeRef, Event, Head, Request
from ..protocols import EpisodeRecall, EventStream, Handler, Middleware

__all__ = ["recall"]


def recall(episodes: EpisodeRecall) -> Middleware:
    """A request that none can concern passes as it is. The `Head` says which were recalled."""

    def middleware(handler: Handler) -> Handler:
        def handle(request: Request) -> EventStream:
            return _recalled(handler, request, episodes) if episodes.concerns(request) else handler(request)

        return handle

    return middleware


@asynccontextmanager
async def _recalled(
    handler: Handler, request: Request, episodes: EpisodeRecall
) -> AsyncIterator[AsyncIterator[Event]]:
    refs = await episodes.recall(request)
    if not refs:
        async with handler(request) as events:
            yield events
        return
    named = dataclasses.replace(request, episodes=refs)
    async with handler(named) as events, aclosing(_stamped(events, refs)) as stamped:
        yield stamped


async def _stamped(events: AsyncIterator[Event], refs: tuple[EpisodeRef, ...]) -> AsyncGenerator[Event, None]:
    async for event in events:
        yield dataclasses.replace(event, episodes=refs) if isinstance(event, Head) else event
