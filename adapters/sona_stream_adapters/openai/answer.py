"""Turns an upstream's HTTP answer into events: bytes verbatim, and what could be read in them beside."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Protocol

from sona_stream.errors import UpstreamError, UpstreamProtocolError
from sona_stream.events import Delta, Event, Finish, Head, Headers
from sona_stream.wire import AnswerParser, SseDecoder

from .failures import early_error

__all__ = ["UpstreamResponse", "body_events", "opaque_events", "stream_events"]

MAX_BODY_BYTES = 64 << 20
HOLD_S = 10.0
"""How long comments and an empty first chunk are held back so that an early error keeps its status."""
DRAIN_S = 1.0
"""After `[DONE]`: how long to wait for the end of the HTTP answer, so that its connection can be used again."""


class UpstreamResponse(Protocol):
    """What the transport's and httpx's responses have in common."""

    status: int
    headers: Headers
    complete: bool
    read_to_close: bool

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def read(self, limit: int | None = None) -> bytes: ...


async def stream_events(
    response: UpstreamResponse, head: Head, unreadable: Callable[[], None]
) -> AsyncGenerator[Event, None]:
    """A server-sent stream. Every `Delta` ends at an event boundary, so that whoever writes it may put comments or
    an error event after it; bytes of an event that was never completed are dropped when the stream breaks.

    An error event before any content is raised. A stream counts as ended cleanly when it had ``[DONE]``; without
    it, when every choice had its finish_reason; without that, when the HTTP answer was complete by its own
    framing and there was no choice, or none that could be read, to judge by. Everything else is a broken stream.
    """
    decoder, parser = SseDecoder(), AnswerParser()
    opened, held, began = False, b"", time.monotonic()
    try:
        async for chunk in response:
            raw, events = decoder.take(chunk)
            pieces = parser.events(events)
            if opened:
                if raw:
                    yield Delta(raw=raw, pieces=pieces)
            else:
                held += raw
                if pieces or _may_open(parser, decoder, began):
                    opened = True
                    yield head
                    yield Delta(raw=held, pieces=pieces)
            if parser.done or (parser.error is not None and not opened):
                break
        rest = await _drained(response) if parser.done else b""
    except UpstreamError as error:
        if not opened:
            error.retryable = True  # nothing was handed on yet
        raise
    # Judged before the tail is read: an event cut in its middle is a sign of a death, not of an odd dialect.
    readable = not parser.broken and not decoder.overflowed
    if not readable:
        unreadable()
    tail, events = decoder.finish()
    pieces = parser.events(events)
    if parser.error is not None and not opened and not pieces:
        raise early_error(head.model, parser.error_status(), head.headers, parser.error)
    _require_end(parser, response, head, readable=readable, opened=opened)
    if not opened:
        yield head
    if last := (b"" if opened else held) + tail + rest:
        yield Delta(raw=last, pieces=pieces)
    yield _finish(parser)


def _may_open(parser: AnswerParser, decoder: SseDecoder, began: float) -> bool:
    if parser.error is not None and parser.data_events < 2:
        return False
    return (
        parser.data_events >= 2
        or parser.done
        or parser.broken
        or decoder.overflowed
        or time.monotonic() - began > HOLD_S
    )


def _require_end(
    parser: AnswerParser, response: UpstreamResponse, head: Head, *, readable: bool, opened: bool
) -> None:
    if parser.done or parser.error is not None or (readable and parser.all_finished):
        return
    if response.read_to_close or (readable and parser.has_choices) or (readable and not parser.data_events):
        raise UpstreamProtocolError(
            f"{head.model}: the stream ended without [DONE] and without a finish_reason", retryable=not opened
        )


async def _drained(response: UpstreamResponse) -> bytes:
    parts = []
    # The answer itself is complete: however its connection ends now, nothing is lost.
    with contextlib.suppress(TimeoutError, UpstreamError):
        async with asyncio.timeout(DRAIN_S):
            async for chunk in response:
                parts.append(chunk)  # noqa: PERF401 - what came before a timeout is kept
    return b"".join(parts)


async def body_events(
    response: UpstreamResponse, head: Head, unreadable: Callable[[], None]
) -> AsyncGenerator[Event, None]:
    """An answer that is not streamed, read whole: until then its failure may still fall back."""
    parser = AnswerParser()
    try:
        body = await response.read(MAX_BODY_BYTES)
    except UpstreamError as error:
        error.retryable = True
        raise
    pieces = parser.body(body)
    if parser.error is not None:
        raise early_error(head.model, parser.error_status(), head.headers, parser.error)
    if parser.broken:
        if response.read_to_close:  # cut JSON is the only sign of a death here
            raise UpstreamProtocolError(f"{head.model}: the body is not JSON", retryable=True)
        unreadable()
    yield head
    yield Delta(raw=body, pieces=pieces)
    yield _finish(parser)


async def opaque_events(response: UpstreamResponse, head: Head) -> AsyncGenerator[Event, None]:
    """A body that cannot be read (compressed against our wish): passed on, not scored."""
    opened = False
    async for chunk in response:
        if not opened:
            yield head
            opened = True
        yield Delta(raw=chunk)
    if not opened:
        yield head
    yield Finish(raw=b"")


def _finish(parser: AnswerParser) -> Finish:
    return Finish(
        reason="error" if parser.error is not None else parser.reason,
        usage=parser.usage,
        completion_id=parser.completion_id,
        raw=b"",
    )
