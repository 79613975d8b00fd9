"""One answer: filled by its connection, read by its consumer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..errors import UpstreamError, UpstreamProtocolError, UpstreamTimeout, UpstreamUnreachable
from .timeouts import Timeouts

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["Response"]

Headers = tuple[tuple[bytes, bytes], ...]


class Response:
    """``status``, ``headers`` (names in lower case) and, once, the body: ``async for chunk in response``.

    A chunk is everything that came since the last one was taken. What breaks the exchange is raised after the
    bytes that came before it: `UpstreamUnreachable` before the status line, `UpstreamProtocolError` after it,
    `UpstreamTimeout` naming the limit.
    """

    __slots__ = (
        "_chunks",
        "_connection",
        "_error",
        "_loop",
        "_size",
        "_started",
        "_timeouts",
        "_waiter",
        "body_started",
        "complete",
        "headers",
        "label",
        "read_to_close",
        "status",
        "touched",
    )

    def __init__(
        self, connection: Connection, loop: asyncio.AbstractEventLoop, timeouts: Timeouts, label: str
    ) -> None:
        self.status = 0
        self.headers: Headers = ()
        self.complete = False
        """The whole answer is here (not necessarily taken yet)."""
        self.read_to_close = False
        """The body has no length of its own: only its content can tell an end from a death."""
        self.body_started = False
        self.touched = False
        """Any byte of an answer was seen."""
        self.label = label
        self._connection: Connection | None = connection
        self._loop = loop
        self._timeouts = timeouts
        self._started = loop.time()
        self._chunks: list[bytes] = []
        self._size = 0
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None

    # --- for the consumer

    def __aiter__(self) -> Response:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.complete:
                raise StopAsyncIteration
            await self._wait()
        return self._take()

    async def read(self, limit: int | None = None) -> bytes:
        """The rest of the body. Raises `UpstreamProtocolError` when it has more than ``limit`` bytes."""
        parts: list[bytes] = []
        size = 0
        async for chunk in self:
            size += len(chunk)
            if limit is not None and size > limit:
                raise UpstreamProtocolError(f"{self.label}: the body has more than {limit} bytes")
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def head(self) -> None:
        """Return when ``status`` and ``headers`` are there."""
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._wait()

    def close(self) -> None:
        """Abort the connection unless the answer is complete. Idempotent, immediate."""
        connection, self._connection = self._connection, None
        if connection is not None and not self.complete:
            connection.abandon(self)

    @property
    def died_untouched(self) -> bool:
        """The connection was lost before one byte of an answer: on a reused one it was probably stale."""
        return isinstance(self._error, UpstreamUnreachable) and not self.touched

    def _take(self) -> bytes:
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._size = 0
        if self._connection is not None:
            self._connection.resume(self)
        return data

    async def _wait(self) -> None:
        connection = self._connection
        if connection is None:
            raise UpstreamProtocolError(f"{self.label}: the response was closed before it was read")
        limits = self._timeouts
        if self.body_started:
            connection.wake_by(self._loop.time() + limits.idle)
        else:
            connection.wake_by(self._started + limits.first_byte)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # --- for the connection

    @property
    def waiting(self) -> bool:
        """Whether the consumer waits: only then a limit may pass."""
        return self._waiter is not None

    def take_body(self, data: bytes) -> int:
        """One piece of the body; returns the bytes now held."""
        self.body_started = True
        self._chunks.append(data)
        self._size += len(data)
        return self._size

    def wake(self) -> None:
        """Let the consumer look."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def lose(self, reason: str) -> None:
        """The connection ended too early."""
        if self.status:
            self.fail(UpstreamProtocolError(f"{self.label}: {reason} in the middle of the answer"))
        else:
            self.fail(UpstreamUnreachable(f"{self.label}: {reason} before the answer began", retryable=True))

    def time_out(self) -> None:
        """A limit passed while the consumer waited."""
        if self.body_started:
            message, retryable = f"no byte for {self._timeouts.idle:g} s (idle timeout)", False
        else:
            message, retryable = f"no answer within {self._timeouts.first_byte:g} s (first_byte timeout)", True
        self.fail(UpstreamTimeout(f"{self.label}: {message}", status=504, retryable=retryable))

    def fail(self, error: UpstreamError) -> None:
        """End with this error; the first one stays."""
        if self._error is None and not self.complete:
            self._error = error
        self.wake()
