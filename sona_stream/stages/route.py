"""Route: embeds the query and asks the policy which model answers."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
from numpy.typing import NDArray

from ..errors import SonaError
from ..events import Event, Request
from ..protocols import Embedder, Handler, Middleware, Router

__all__ = ["route"]

_log = logging.getLogger(__name__)


def route(router: Router, embedder: Embedder) -> Middleware:
    """The model's name in the request becomes the deployment group's that the policy chose.

    An embedder that fails (an HTTP one may) costs the pattern, not the answer: the policy then sees a request
    without embedding and takes its default.
    """

    def middleware(handler: Handler) -> Handler:
        @asynccontextmanager
        async def handle(request: Request) -> AsyncIterator[AsyncIterator[Event]]:
            embedded = dataclasses.replace(request, embedding=await _embedding(embedder, request.query))
            decision = await router.route(embedded)
            routed = dataclasses.replace(embedded, route=decision, model=decision.model)
            async with handler(routed) as events:
                yield events

        return handle

    return middleware


async def _embedding(embedder: Embedder, query: str) -> NDArray[np.float32] | None:
    if not query:
        return None
    try:
        return np.asarray((await embedder.embed([query]))[0])
    except SonaError as error:
        _log.warning("the embedder %s failed, routing without a pattern: %s", embedder.name, error)
        return None
