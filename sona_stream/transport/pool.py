"""Keep-alive connections of one origin: last in, first out; every operation is O(1)."""

from __future__ import annotations

import asyncio
import collections
import ssl

from ..errors import UpstreamTimeout, UpstreamUnreachable
from .connection import Connection, ConnectionLimits
from .origin import Origin
from .timeouts import Timeouts

__all__ = ["Pool"]


class Pool:
    """Connections to one origin. ``cap`` bounds how many are open at once; None: as many as are asked for."""

    def __init__(
        self,
        origin: Origin,
        context: ssl.SSLContext | None,
        limits: ConnectionLimits,
        *,
        cap: int | None,
        idle_expiry: float,
    ) -> None:
        self.origin = origin
        self.label = str(origin)
        self.loop = asyncio.get_running_loop()
        self.opened = 0
        self.reused = 0
        self._context = context
        self._limits = limits
        self._cap = cap
        self._idle_expiry = idle_expiry
        self._idle: dict[Connection, None] = {}
        """Free connections, the one released last at the end."""
        self._counted: set[Connection] = set()
        """Connections that hold a slot of the cap."""
        self._open: set[Connection] = set()
        """Connections whose socket is not closed yet."""
        self._reserved = 0
        """Slots given to connections that are being opened."""
        self._waiters: collections.deque[asyncio.Future[Connection | None]] = collections.deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closing = False
        self._all_closed: asyncio.Future[None] | None = None

    def take_idle(self) -> Connection | None:
        """The free connection used last, or None."""
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.usable:
                self.reused += 1
                return connection
        return None

    async def open(self, timeouts: Timeouts) -> tuple[Connection, bool]:
        """(a connection, whether it was used before). Waits for a slot under a cap, else connects.

        Raises `UpstreamUnreachable` or `UpstreamTimeout`.
        """
        if self._closing:
            raise UpstreamUnreachable(f"{self.origin}: the client is closed", retryable=True)
        if self._cap is not None and self._busy() >= self._cap and not self._evict():
            connection = await self._wait_for_slot(timeouts)
            if connection is not None:
                return connection, True
        else:
            self._reserved += 1
        try:
            return await self._connect(timeouts), False
        finally:
            self._reserved -= 1
            self._hand_on()

    async def _connect(self, timeouts: Timeouts) -> Connection:
        origin = self.origin
        try:
            async with asyncio.timeout(timeouts.connect):
                _, connection = await self.loop.create_connection(
                    lambda: Connection(self, self.loop, self._limits),
                    origin.host,
                    origin.port,
                    ssl=self._context,
                    server_hostname=origin.host if self._context else None,
                )
        except TimeoutError:
            message = f"{origin}: no connection within {timeouts.connect:g} s (connect timeout)"
            raise UpstreamTimeout(message, status=504, retryable=True) from None
        except (OSError, ssl.SSLError) as error:
            raise UpstreamUnreachable(f"{origin}: cannot connect: {error}", retryable=True) from error
        self.opened += 1
        if self._closing:
            connection.abort()
        return connection

    # --- the cap

    def _busy(self) -> int:
        return len(self._counted) + self._reserved

    def _evict(self) -> bool:
        """Make room by closing a free connection (a fresh one is wanted although some are free)."""
        connection = self.take_idle()
        if connection is None:
            return False
        self.reused -= 1
        self._counted.discard(connection)
        connection.abort()
        return True

    async def _wait_for_slot(self, timeouts: Timeouts) -> Connection | None:
        """A free connection, or None and a reserved slot."""
        waiter: asyncio.Future[Connection | None] = self.loop.create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeouts.first_byte):
                return await waiter
        except TimeoutError:
            self._give_back(waiter)
            message = f"{self.origin}: none of {self._cap} connections was free within {timeouts.first_byte:g} s"
            raise UpstreamTimeout(f"{message} (first_byte timeout)", status=504, retryable=True) from None
        except asyncio.CancelledError:
            self._give_back(waiter)
            raise

    def _give_back(self, waiter: asyncio.Future[Connection | None]) -> None:
        if waiter.cancelled() or not waiter.done():
            return
        connection = waiter.result()
        if connection is not None:
            self.release(connection)
        else:
            self._reserved -= 1
            self._hand_on()

    def _hand_on(self) -> None:
        """A slot is free: the longest waiting request gets it."""
        while self._waiters and (self._cap is None or self._busy() < self._cap):
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._reserved += 1
                waiter.set_result(None)

    # --- told by connections

    def add(self, connection: Connection) -> None:
        """Connected."""
        self._counted.add(connection)
        self._open.add(connection)

    def release(self, connection: Connection) -> None:
        """Free for the next exchange: to a waiter, else to the end of the line."""
        if self._closing or not connection.usable:
            self.discard(connection)
            connection.abort()
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        connection.released_at = self.loop.time()
        self._idle[connection] = None
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(self._idle_expiry, self._sweep)

    def discard(self, connection: Connection) -> None:
        """Never to be used again."""
        self._idle.pop(connection, None)
        if connection in self._counted:
            self._counted.discard(connection)
            self._hand_on()

    def closed(self, connection: Connection) -> None:
        """Its socket is closed."""
        self._open.discard(connection)
        if not self._open and self._all_closed is not None and not self._all_closed.done():
            self._all_closed.set_result(None)

    def _sweep(self) -> None:
        self._sweeper = None
        limit = self.loop.time() - self._idle_expiry
        expired = []
        for connection in self._idle:  # the longest idle come first
            if connection.released_at > limit + 0.002:
                self._sweeper = self.loop.call_at(connection.released_at + self._idle_expiry, self._sweep)
                break
            expired.append(connection)
        for connection in expired:
            self.discard(connection)
            connection.abort()

    # --- the end

    def stop(self) -> None:
        """Close free connections; those in use close when their exchange ends."""
        self._closing = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in list(self._idle):
            self.discard(connection)
            connection.abort()

    async def wait_closed(self, grace: float) -> None:
        """After `stop`: wait until all sockets are closed; past ``grace`` seconds close them."""
        if not self._open:
            return
        if self._all_closed is None:
            self._all_closed = self.loop.create_future()
        _, pending = await asyncio.wait([self._all_closed], timeout=grace)
        if pending:
            for connection in list(self._open):
                connection.abort()
            await self._all_closed
