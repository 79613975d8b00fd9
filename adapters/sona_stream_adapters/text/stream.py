"""A queue of pieces as the events of one answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from sona_stream.errors import SonaError, UpstreamProtocolError
from sona_stream.events import Delta, Event, Finish, Head, Piece, Request, Usage

__all__ = ["Item", "completion_id", "events_of"]

Item = Piece | Usage | BaseException
"""What a stream's queue carries: pieces, then the usage (a clean end) or an exception"""


def completion_id(request: Request) -> str:
    """The ``id`` inside the answer's body."""
    return ("chatcmpl-" if request.endpoint == "chat.completions" else "cmpl-") + request.id


async def events_of(head: Head, queue: asyncio.Queue[Item], answer_id: str) -> AsyncGenerator[Event, None]:
    """The head, a `Delta` for whatever waits in the queue, and the finish. Raises the first exception that the
    queue brings: it ends the answer, though other choices may go on.
    """
    yield head
    reason: str | None = None
    while True:
        items = await _available(queue)
        pieces = tuple(item for item in items if isinstance(item, Piece))
        reason = next((p.finish_reason for p in pieces if p.index == 0 and p.finish_reason), reason)
        if pieces:
            yield Delta(pieces=pieces)
        last = items[-1]
        if isinstance(last, Usage):
            yield Finish(reason=reason, usage=last, completion_id=answer_id)
            return
        if isinstance(last, SonaError):
            raise last
        if isinstance(last, BaseException):
            raise UpstreamProtocolError(f"{head.model} failed: {last}") from last


async def _available(queue: asyncio.Queue[Item]) -> list[Item]:
    """At least one item; more if the consumer was slower than the model. Only the last may be no piece."""
    items = [await queue.get()]
    while isinstance(items[-1], Piece) and not queue.empty():
        items.append(queue.get_nowait())
    return items
