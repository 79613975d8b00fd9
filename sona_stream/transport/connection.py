"""One connection to an upstream: parses answers, one exchange at a time, and holds the reader back."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import httptools

from ..errors import UpstreamProtocolError
from .response import Response

__all__ = ["Connection", "ConnectionLimits", "ConnectionOwner"]


class ConnectionLimits:
    """Sizes in bytes."""

    __slots__ = ("buffer", "head")

    def __init__(self, *, head: int, buffer: int) -> None:
        self.head = head
        """Most that may come without a byte of body: heads, 1xx answers, trailers."""
        self.buffer = buffer
        """Body held for a slow consumer before reading stops; one read more may come on top."""


class ConnectionOwner(Protocol):
    """Who keeps connections: told when one is connected, free again, spoilt and closed."""

    def add(self, connection: Connection) -> None: ...
    def release(self, connection: Connection) -> None: ...
    def discard(self, connection: Connection) -> None: ...
    def closed(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """Owned by a pool. `begin` starts an exchange on a free connection."""

    def __init__(self, owner: ConnectionOwner, loop: asyncio.AbstractEventLoop, limits: ConnectionLimits) -> None:
        self.released_at = 0.0
        self._owner = owner
        self._loop = loop
        self._limits = limits
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._response: Response | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._bodyless = False
        self._informational = False
        self._surplus = False
        self._keep_alive = False
        self._paused = False
        self._barren = 0
        """Bytes fed since the last byte of body."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._deadline = 0.0

    # --- for the pool and the response

    @property
    def usable(self) -> bool:
        """Whether a new exchange may begin."""
        return self._transport is not None and self._response is None and not self._transport.is_closing()

    def begin(self, response: Response, payload: bytes, *, bodyless: bool) -> None:
        """Write a request. ``bodyless``: the answer has no body whatever its head says (HEAD)."""
        transport = self._transport
        if transport is None or transport.is_closing():
            response.lose("the connection was closed")
            return
        self._response, self._bodyless, self._barren = response, bodyless, 0
        transport.write(payload)

    def abandon(self, response: Response) -> None:
        """The consumer left in the middle: nothing else tells the upstream to stop."""
        if response is self._response:
            self._drop()

    def resume(self, response: Response) -> None:
        """The consumer took what was held."""
        if self._paused and response is self._response:
            self._set_paused(False)

    def wake_by(self, deadline: float) -> None:
        """The consumer waits, at most until this loop time. A timer that is set earlier serves as well."""
        self._deadline = deadline
        if self._timer is None or deadline < self._timer_at:
            self._arm(deadline)

    def abort(self) -> None:
        """Close now, whatever goes on."""
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Stock asyncio's and uvloop's transports share no class below BaseTransport.
        self._transport = cast("asyncio.Transport", transport)
        self._owner.add(self)

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:  # an upstream must not speak unasked: what follows would answer the next request
            self._drop()
            return
        response.touched = True
        self._barren += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            reason = error.__context__ or error  # the callback's own error, when it was one
            self._refuse(response, f"what came is not HTTP/1.1 ({reason or type(error).__name__})")
            return
        if self._barren > self._limits.head:
            self._refuse(response, f"more than {self._limits.head} bytes of headers")
        elif response.complete:
            self._finish(response)
        else:
            response.wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        response = self._response
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if response is not None:
            if response.status and response.read_to_close and exc is None:
                response.complete = True
                response.wake()
            else:
                response.lose(f"the connection was lost ({exc})" if exc else "the connection was closed")
            self._response = None
        self._owner.discard(self)
        self._owner.closed(self)

    # --- httptools

    def on_message_begin(self) -> None:
        if self._response is None or self._response.complete:
            self._surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._response is not None and not self._response.status:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        headers, self._headers = self._headers, []
        if self._barren > self._limits.head:
            size = sum(len(name) + len(value) + 4 for name, value in headers)
            if size > self._limits.head:
                raise ValueError(f"more than {self._limits.head} bytes of headers")
        response = self._response
        self._informational = 100 <= status < 200
        if response is None or response.complete or self._informational:
            return
        framed = status in (204, 304) or self._bodyless
        for name, value in headers:
            if name == b"content-length" or (
                name == b"transfer-encoding" and value.lower().rstrip().endswith(b"chunked")
            ):
                framed = True
        response.read_to_close = not framed
        response.status, response.headers = status, tuple(headers)
        if self._bodyless:
            response.complete = True
            self._keep_alive = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        response = self._response
        if response is None or response.complete:
            self._surplus = True
            return
        self._barren = 0
        if response.take_body(data) > self._limits.buffer and not self._paused:
            self._set_paused(True)

    def on_message_complete(self) -> None:
        if self._response is not None and not self._informational:
            self._response.complete = True
            self._keep_alive = self._parser.should_keep_alive()  # forgotten once the callback returns

    # --- inside

    def _finish(self, response: Response) -> None:
        self._response = None
        self._deadline = 0.0
        response.wake()
        transport = self._transport
        if (
            self._surplus
            or not self._keep_alive
            or transport is None
            or transport.is_closing()
            or transport.get_write_buffer_size()  # the upstream answered before it had read the request
        ):
            self._drop()
            return
        if self._bodyless:  # the parser still waits for the body that its head announced
            self._parser = httptools.HttpResponseParser(self)
        if self._paused:
            self._set_paused(False)
        self._owner.release(self)

    def _refuse(self, response: Response, reason: str) -> None:
        response.fail(UpstreamProtocolError(f"{response.label}: {reason}", retryable=not response.status))
        self._drop()

    def _drop(self) -> None:
        self._response = None
        self._owner.discard(self)
        self.abort()

    def _set_paused(self, paused: bool) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._paused = paused
        if paused:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def _arm(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        response = self._response
        if response is None:
            return
        if not response.waiting:  # a slow consumer; its next wait sets a new limit
            return
        if self._loop.time() + 0.002 < self._deadline:  # clocks of loops are coarse
            self._arm(self._deadline)
            return
        response.time_out()
        self._drop()
