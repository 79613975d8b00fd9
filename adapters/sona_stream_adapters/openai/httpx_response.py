"""httpx's response with the shape of the transport's. Bytes are not decompressed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from sona_stream.errors import UpstreamProtocolError, UpstreamTimeout
from sona_stream.events import Headers
from sona_stream.transport import Timeouts

if TYPE_CHECKING:
    import httpx

__all__ = ["HttpxResponse", "limit_passed"]


def limit_passed(name: str, limit: str, seconds: float) -> UpstreamTimeout:
    """The error for a limit (connect, first_byte, idle) of deployment ``name``."""
    return UpstreamTimeout(
        f"{name}: the limit of {seconds:g} s passed ({limit} timeout)", status=504, retryable=limit != "idle"
    )


class HttpxResponse:
    """Read once, by iteration or `read`. Raises what the transport's response raises."""

    def __init__(self, answer: httpx.Response, limits: Timeouts, name: str) -> None:
        self.status = answer.status_code
        self.headers: Headers = tuple((key.lower(), value) for key, value in answer.headers.raw)
        framing = {key for key, _ in self.headers} & {b"content-length", b"transfer-encoding"}
        self.read_to_close = answer.http_version.startswith("HTTP/1") and not framing
        self.complete = False
        self._chunks = answer.aiter_raw()
        self._limits = limits
        self._name = name
        self._started = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        import httpx

        limit, seconds = ("idle", self._limits.idle) if self._started else ("first_byte", self._limits.first_byte)
        try:
            async with asyncio.timeout(seconds):
                chunk = await anext(self._chunks)
        except TimeoutError:
            raise limit_passed(self._name, limit, seconds) from None
        except httpx.HTTPError as error:
            raise UpstreamProtocolError(f"{self._name}: {error or type(error).__name__}") from error
        except StopAsyncIteration:
            self.complete = True
            raise
        self._started = True
        return chunk

    async def read(self, limit: int | None = None) -> bytes:
        """The rest of the body. Raises `UpstreamProtocolError` when it has more than ``limit`` bytes."""
        parts: list[bytes] = []
        size = 0
        async for chunk in self:
            size += len(chunk)
            if limit is not None and size > limit:
                raise UpstreamProtocolError(f"{self._name}: the body has more than {limit} bytes")
            parts.append(chunk)
        return b"".join(parts)
