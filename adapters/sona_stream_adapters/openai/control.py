"""httpx: for probes and embeddings, and for upstreams that need a proxy, a client certificate or HTTP/2.

It is imported on first use, off the event loop: it costs tenths of a second.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sona_stream.config.settings import Deployment
from sona_stream.errors import (
    UpstreamError,
    UpstreamProtocolError,
    UpstreamUnreachable,
)
from sona_stream.events import Headers
from sona_stream.transport import Timeouts

from .answer import MAX_BODY_BYTES
from .connection import check_connection, ssl_context
from .headers import answer_headers
from .httpx_response import HttpxResponse, limit_passed

if TYPE_CHECKING:
    import httpx

__all__ = ["ControlPlane"]

PROBE_S = 10.0
MAX_LIST_BYTES = 4 << 20


class ControlPlane:
    """One httpx client of one deployment, made when it is first needed."""

    def __init__(
        self, deployment: Deployment, timeouts: Timeouts, headers: Headers, url: Callable[[str], str]
    ) -> None:
        check_connection(deployment)
        self._deployment = deployment
        self._name = deployment.model_name
        self._timeouts = timeouts
        self._headers = headers
        self._url = url
        self._client: httpx.AsyncClient | None = None
        self._making = asyncio.Lock()

    async def aclose(self) -> None:
        """Close the client, if there is one."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def probe(self, *, own_key: bool) -> None:
        """Returns when the upstream answers as one that would serve. A list of models is best; a server without
        one (404, 405) or one that keeps it from us (403, or 401 without a key of ours) is there all the same.
        Raises `UpstreamError`.
        """
        status = await self._status("/models")
        if _is_passing(status):
            raise UpstreamError(f"{self._name}: the upstream answers {status}", retryable=True)
        if status == 401 and own_key:
            raise UpstreamError(f"{self._name}: the upstream refuses the api_key (401)", status=502)

    async def _status(self, path: str) -> int:
        limits = Timeouts(self._timeouts.connect, PROBE_S, PROBE_S)
        async with self.stream("GET", self._url(path), self._headers, b"", timeouts=limits) as response:
            return response.status

    async def list_models(self) -> tuple[str, ...]:
        """The ids that `/models` lists, in the upstream's order. Raises `UpstreamError`."""
        limits = Timeouts(self._timeouts.connect, PROBE_S, PROBE_S)
        async with self.stream("GET", self._url("/models"), self._headers, b"", timeouts=limits) as response:
            if response.status != 200:
                raise UpstreamError(
                    f"{self._name}: the upstream answers {response.status} when asked for its models"
                    + (" (a key of its own: api_key, or --upstream-key-env)" if response.status == 401 else ""),
                    retryable=_is_passing(response.status),
                )
            body = await response.read(MAX_LIST_BYTES)
        try:
            return tuple(entry["id"] for entry in json.loads(body)["data"] if isinstance(entry["id"], str))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UpstreamProtocolError(f"{self._name}: the upstream's list of models cannot be read") from error

    async def embeddings(self, body: bytes, headers: Headers) -> tuple[int, Headers, bytes]:
        """POST to `/embeddings`: (status, headers for the client, body)."""
        async with self.stream("POST", self._url("/embeddings"), headers, body) as response:
            return response.status, answer_headers(response.headers), await response.read(MAX_BODY_BYTES)

    @asynccontextmanager
    async def stream(
        self, method: str, url: str, headers: Headers, body: bytes, *, timeouts: Timeouts | None = None
    ) -> AsyncIterator[HttpxResponse]:
        """The transport's `Client.request`, by httpx."""
        import httpx

        client = self._client or await self._made()
        limits = timeouts or self._timeouts
        request = client.build_request(method, url, headers=list(headers), content=body or None)
        try:
            async with asyncio.timeout(limits.first_byte):
                answer = await client.send(request, stream=True)
        except TimeoutError:
            raise limit_passed(self._name, "first_byte", limits.first_byte) from None
        except httpx.ConnectTimeout:
            raise limit_passed(self._name, "connect", limits.connect) from None
        except httpx.HTTPError as error:
            where = f"{request.url.scheme}://{request.url.netloc.decode()}"
            reason = f"{self._name}: {where}: {error or type(error).__name__}"
            raise UpstreamUnreachable(reason, retryable=True) from error
        try:
            yield HttpxResponse(answer, limits, self._name)
        finally:
            await answer.aclose()

    async def _made(self) -> httpx.AsyncClient:
        async with self._making:
            if self._client is None:
                self._client = await asyncio.to_thread(self._make)
            return self._client

    def _make(self) -> httpx.AsyncClient:
        import httpx

        deployment = self._deployment
        secure = self._url("").startswith("https") or bool(deployment.proxy)
        return httpx.AsyncClient(
            verify=ssl_context(deployment, secure=secure),
            http2=deployment.http2,
            proxy=deployment.proxy or None,
            timeout=httpx.Timeout(None, connect=self._timeouts.connect),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
            follow_redirects=False,
        )


def _is_passing(status: int) -> bool:
    """Whether the upstream is ill or busy, and may say something else later."""
    return status >= 500 or status == 429
