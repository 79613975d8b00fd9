"""Turns an upstream's HTTP answer into events: bytes verbatim, and what could be read in them beside."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Protocol

from sona_stream.errors import UpstreamError, UpstreamProtocolError
from sona_stream.events import Delta, Event, Finish, Head, Headers, Piece
from sona_stream.wire import AnswerParser, SseDecoder

from .failures import early_error

__all__ = ["UpstreamResponse", "body_events", "opaque_events", "stream_events"]

MAX_BODY_BYTES = 64 << 20
HOLD_S = 5.0
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

    An error event before any content is raised; comments and an empty first chunk wait for what follows, at most
    `HOLD_S`. A stream counts as ended cleanly when it had ``[DONE]``; without it, when every choice had its
    finish_reason; without that, when the HTTP answer was complete by its own framing and there was no choice, or
    none that could be read, to judge by. Everything else is a broken stream.
    """
    reading = _Reading(head)
    try:
        async with aclosing(_peeked(response, reading)) as peeked:
            async for event in peeked:
                yield event
        if not reading.ended():
            async for chunk in response:
                for event in reading.take(chunk):
                    yield event
                if reading.ended():
                    break
        rest = await _drained(response) if reading.parser.done else b""
    except UpstreamError as error:
        if not reading.opened:
            error.retryable = True  # nothing was handed on yet
        raise
    if not reading.readable:
        unreadable()
    for event in reading.end(rest, read_to_close=response.read_to_close):
        yield event


class _Reading:
    """A stream as far as it was read: what is held back, and what the parser made of it."""

    def __init__(self, head: Head) -> None:
        self.parser = AnswerParser()
        self.opened = False
        """Something was handed on."""
        self.held = b""
        self._head = head
        self._decoder = SseDecoder()

    def ended(self) -> bool:
        """Nothing more is needed from the upstream."""
        return self.parser.done or (self.parser.error is not None and not self.opened)

    @property
    def readable(self) -> bool:
        """Whether everything so far could be read."""
        return not self.parser.broken and not self._decoder.overflowed

    def take(self, chunk: bytes) -> tuple[Event, ...]:
        """What is to be handed on now."""
        raw, events = self._decoder.take(chunk)
        pieces = self.parser.events(events)
        if self.opened:
            return (self._delta(raw, pieces),) if raw else ()
        self.held += raw
        return self.open(pieces) if pieces or self._may_open() else ()

    def open(self, pieces: tuple[Piece, ...] = ()) -> tuple[Event, ...]:
        """Hand on what was held; from here on the answer is the client's."""
        self.opened = True
        held, self.held = self.held, b""
        head = _told(self._head, self.parser)
        return (head, self._delta(held, pieces)) if held else (head,)

    def _delta(self, raw: bytes, pieces: tuple[Piece, ...]) -> Delta:
        return Delta(raw=raw, pieces=pieces, completion_id=self.parser.completion_id)

    def _may_open(self) -> bool:
        parser = self.parser
        if parser.error is not None and parser.data_events < 2:
            return False
        return parser.data_events >= 2 or parser.done or not self.readable

    def end(self, rest: bytes, *, read_to_close: bool) -> tuple[Event, ...]:
        """The last events. Raises what makes the stream no clean end, or the early error that it was."""
        # Judged before the tail is read: an event cut in its middle is a sign of a death, not of an odd dialect.
        readable = self.readable
        tail, events = self._decoder.finish()
        pieces = self.parser.events(events)
        parser = self.parser
        if parser.error is not None and not self.opened and not pieces:
            raise early_error(self._head.model, parser.error_status(), self._head.headers, parser.error)
        self._require_end(readable=readable, read_to_close=read_to_close)
        self.held += tail + rest
        first = () if self.opened else (_told(self._head, parser),)
        last = (self._delta(self.held, pieces),) if self.held else ()
        return (*first, *last, _finish(parser))

    def _require_end(self, *, readable: bool, read_to_close: bool) -> None:
        parser = self.parser
        if parser.done or parser.error is not None or (readable and parser.all_finished):
            return
        if read_to_close or (readable and (parser.has_choices or not parser.data_events)):
            raise UpstreamProtocolError(
                f"{self._head.model}: the stream ended without [DONE] and without a finish_reason",
                retryable=not self.opened,
            )


async def _peeked(response: UpstreamResponse, reading: _Reading) -> AsyncGenerator[Event, None]:
    """Reads until the stream may open; opens it when something was held for `HOLD_S`."""
    chunks, until = aiter(response), time.monotonic() + HOLD_S
    while not reading.opened and not reading.ended():
        if not reading.held:
            chunk = await anext(chunks, None)
        else:  # a task, because waiting with a limit must not cancel the read itself
            task = asyncio.ensure_future(_next(chunks))
            try:
                await asyncio.wait((task,), timeout=max(0.0, until - time.monotonic()))
                if not task.done():
                    for event in reading.open():
                        yield event
                chunk = await task
            finally:
                if not task.done():
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
        if chunk is None:
            return
        for event in reading.take(chunk):
            yield event


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)


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
    yield _told(head, parser)
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


def _told(head: Head, parser: AnswerParser) -> Head:
    """The head with what the answer's beginning told of the prompt."""
    return dataclasses.replace(head, prompt_ids=parser.prompt_ids) if parser.prompt_ids else head


def _finish(parser: AnswerParser) -> Finish:
    return Finish(
        reason="error" if parser.error is not None else parser.reason,
        usage=parser.usage,
        completion_id=parser.completion_id,
        raw=b"",
    )
