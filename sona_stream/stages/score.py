"""Score: judges the answer while it streams by, and puts the verdict on `Finish`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Protocol

from ..events import Delta, Event, Finish, Request, Score
from ..protocols import Handler, Middleware

__all__ = ["Judgement", "score"]

_log = logging.getLogger(__name__)


class Judgement(Protocol):
    """One answer under all scorers at once (`quality.combine`)."""

    def push(self, delta: Delta) -> None: ...
    def finish(self, finish: Finish | None) -> Score: ...


def score(begin: Callable[[Request], Judgement]) -> Middleware:
    """``begin(request)`` starts a judgement. A scorer that raises loses its verdict, never the answer."""

    def middleware(handler: Handler) -> Handler:
        @asynccontextmanager
        async def handle(request: Request) -> AsyncIterator[AsyncIterator[Event]]:
            async with (
                handler(request) as events,
                aclosing(_judged(events, _Guarded(begin, request))) as judged,
            ):
                yield judged

        return handle

    return middleware


async def _judged(events: AsyncIterator[Event], judgement: _Guarded) -> AsyncGenerator[Event, None]:
    async for event in events:
        if isinstance(event, Delta):
            if event.pieces:
                judgement.push(event)
            yield event
        elif isinstance(event, Finish):
            yield dataclasses.replace(event, score=judgement.finish(event))
        else:
            yield event


class _Guarded:
    """Scorers come through a plug-in door: what they raise must not end a stream."""

    def __init__(self, begin: Callable[[Request], Judgement], request: Request) -> None:
        self._judgement: Judgement | None = None
        try:
            self._judgement = begin(request)
        except Exception:
            _log.exception("a scorer failed to begin; this answer is not scored")

    def push(self, delta: Delta) -> None:
        if self._judgement is None:
            return
        try:
            self._judgement.push(delta)
        except Exception:
            self._judgement = None
            _log.exception("a scorer failed; this answer is not scored")

    def finish(self, finish: Finish) -> Score | None:
        if self._judgement is None:
            return None
        try:
            return self._judgement.finish(finish)
        except Exception:
            _log.exception("a scorer failed to finish; this answer is not scored")
            return None
