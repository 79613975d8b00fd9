"""The HTTP/1.1 client of the hot path. It knows nothing of OpenAI."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from types import TracebackType

from ..errors import UpstreamError
from .connection import Connection, ConnectionLimits
from .origin import Origin, parse_url
from .pool import Pool
from .request_head import encode_head
from .response import Response
from .timeouts import Timeouts
from .tls import create_ssl_context

__all__ = ["Client", "RequestContext"]

_URLS_KEPT = 1024


class Client:
    """Requests to any number of origins, each with its own keep-alive pool.

    ``verify``: see `create_ssl_context`. ``max_connections`` is per origin. ``retry_stale`` repeats a request once,
    on a fresh connection, when a reused one was lost before the first byte of an answer: the upstream may then
    have begun the same request twice. ``buffer_bytes`` are held for a slow consumer before reading stops. Belongs
    to the event loop it is first used in.
    """

    def __init__(
        self,
        *,
        verify: bool | str = True,
        timeouts: Timeouts | None = None,
        max_connections: int | None = None,
        idle_expiry: float = 30.0,
        retry_stale: bool = True,
        max_head_bytes: int = 64 << 10,
        buffer_bytes: int = 256 << 10,
    ) -> None:
        self.retry_stale = retry_stale
        self.stale_retries = 0
        self._verify = verify
        self._context: ssl.SSLContext | None = None
        self._timeouts = timeouts or Timeouts()
        self._cap = max_connections
        self._idle_expiry = idle_expiry
        self._limits = ConnectionLimits(head=max_head_bytes, buffer=buffer_bytes)
        self._pools: dict[Origin, Pool] = {}
        self._urls: dict[str, tuple[Pool, bytes, bytes]] = {}
        self._closed = False

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def request(
        self,
        method: str,
        url: str,
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        *,
        timeouts: Timeouts | None = None,
    ) -> RequestContext:
        """``async with client.request(...) as response``: entered when status and headers are there.

        Leaving the block before the body is complete aborts the connection at once. Raises ValueError for a
        URL or header that is malformed, `UpstreamUnreachable`, `UpstreamTimeout` or `UpstreamProtocolError`.
        """
        if self._closed:
            raise RuntimeError("the client is closed")
        pool, target, authority = self._urls.get(url) or self._locate(url)
        length = len(body) if body or method not in ("GET", "HEAD", "DELETE", "OPTIONS") else None
        head = encode_head(method, target, authority, headers, length)
        return RequestContext(self, pool, head + body, method == "HEAD", timeouts or self._timeouts)

    @property
    def connections_opened(self) -> int:
        """Since the start, over all origins."""
        return sum(pool.opened for pool in self._pools.values())

    @property
    def connections_reused(self) -> int:
        """Exchanges that began on a connection used before."""
        return sum(pool.reused for pool in self._pools.values())

    async def aclose(self, *, grace: float = 1.0) -> None:
        """Close free connections now and the others when their exchange ends, or after ``grace`` seconds."""
        self._closed = True
        pools = list(self._pools.values())
        for pool in pools:
            pool.stop()
        await asyncio.gather(*(pool.wait_closed(grace) for pool in pools))

    def _locate(self, url: str) -> tuple[Pool, bytes, bytes]:
        origin, target = parse_url(url)
        pool = self._pools.get(origin)
        if pool is None:
            if origin.tls and self._context is None:
                self._context = create_ssl_context(self._verify)
            context = self._context if origin.tls else None
            pool = Pool(origin, context, self._limits, cap=self._cap, idle_expiry=self._idle_expiry)
            self._pools[origin] = pool
        if len(self._urls) >= _URLS_KEPT:
            self._urls.clear()
        found = self._urls[url] = (pool, target, origin.authority)
        return found


class RequestContext:
    """One request. Entering sends it and returns the `Response`; leaving ends it."""

    __slots__ = ("_bodyless", "_client", "_payload", "_pool", "_response", "_timeouts")

    def __init__(self, client: Client, pool: Pool, payload: bytes, bodyless: bool, timeouts: Timeouts) -> None:
        self._client = client
        self._pool = pool
        self._payload = payload
        self._bodyless = bodyless
        self._timeouts = timeouts
        self._response: Response | None = None

    async def __aenter__(self) -> Response:
        connection, reused = self._pool.take_idle(), True
        if connection is None:
            connection, reused = await self._pool.open(self._timeouts)
        try:
            return await self._exchange(connection)
        except UpstreamError:
            stale = reused and self._response is not None and self._response.died_untouched
            if not (stale and self._client.retry_stale):
                raise
        self._client.stale_retries += 1
        connection, _ = await self._pool.open(self._timeouts)
        return await self._exchange(connection)

    async def _exchange(self, connection: Connection) -> Response:
        pool = self._pool
        response = self._response = Response(connection, pool.loop, self._timeouts, pool.label)
        connection.begin(response, self._payload, bodyless=self._bodyless)
        try:
            await response.head()
        except BaseException:
            response.close()
            raise
        return response

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._response is not None:
            self._response.close()
