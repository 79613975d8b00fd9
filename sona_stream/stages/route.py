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

REMEMBERED = 1024
REMEMBERED_CHARS = 2048
"""Longer queries hardly ever come twice."""


def route(router: Router, embedder: Embedder) -> Middleware:
    """The model's name in the request becomes the deployment group's that the policy chose.

    An embedder that fails (an HTTP one may) costs the pattern, not the answer: the policy then sees a request
    without embedding and takes its default.
    """
    remembered = _Remembered(embedder)

    def middleware(handler: Handler) -> Handler:
        @asynccontextmanager
        async def handle(request: Request) -> AsyncIterator[AsyncIterator[Event]]:
            embedded = dataclasses.replace(request, embedding=await remembered.embedding(request.query))
            decision = await router.route(embedded)
            routed = dataclasses.replace(embedded, route=decision, model=decision.model)
            async with handler(routed) as events:
                yield events

        return handle

    return middleware


class _Remembered:
    """The embedder with the last few questions' vectors at hand: templates, retries and evaluations repeat them.
    In memory only; vectors are not writable, for several requests share them.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: dict[str, NDArray[np.float32]] = {}

    async def embedding(self, query: str) -> NDArray[np.float32] | None:
        """None without a query, or when the embedder fails."""
        if not query:
            return None
        known = self._known.pop(query, None)
        if known is None:
            try:
                known = np.array((await self._embedder.embed([query]))[0])
            except SonaError as error:
                _log.warning("the embedder %s failed, routing without a pattern: %s", self._embedder.name, error)
                return None
            known.flags.writeable = False
            if len(query) > REMEMBERED_CHARS:
                return known
            if len(self._known) >= REMEMBERED:
                del self._known[next(iter(self._known))]
        self._known[query] = known
        return known
