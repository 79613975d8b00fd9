"""The backend: sends a request on, and brings the answer up."""

from __future__ import annotations

import logging
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager

from sona_stream.config.settings import WILDCARD, Deployment, SonaSettings
from sona_stream.errors import ConfigError, UpstreamError
from sona_stream.events import Event, Head, Headers, Request
from sona_stream.protocols import HiddenStateHost
from sona_stream.transport import Client, Timeouts, parse_url
from sona_stream.wire import replace_model

from .answer import UpstreamResponse, body_events, opaque_events, stream_events
from .control import ControlPlane
from .failures import refusal
from .headers import HeaderRules, answer_headers, content_type

__all__ = ["OpenAIBackend", "upstream_url"]

_log = logging.getLogger(__name__)

DEFAULT_BASE = "https://api.openai.com/v1"
MAX_ERROR_BYTES = 1 << 20
_PATHS = {"chat.completions": "/chat/completions", "completions": "/completions"}


class OpenAIBackend:
    """One deployment of an OpenAI-compatible server.

    The body goes up as the client sent it but for ``model``; behind a wildcard (``upstream_model`` is ``*``) with
    that too. ``params`` understood: `extra_headers`, `forward_headers`, `organization`, `max_connections`.
    """

    adaptable = False

    def __init__(self, deployment: Deployment, settings: SonaSettings) -> None:
        self.name = deployment.model_name
        self.unreadable_answers = 0
        """Answers that were forwarded but could not be read to their end, so they are not scored."""
        self._deployment = deployment
        self._model = deployment.upstream_model
        limits = deployment.timeouts
        self._timeouts = Timeouts(connect=limits.connect, first_byte=limits.first_byte, idle=limits.idle)
        self._max_connections = _max_connections(deployment)
        self._rules = HeaderRules(deployment, settings)
        self._urls = {endpoint: upstream_url(deployment, path) for endpoint, path in _PATHS.items()}
        self._control = ControlPlane(
            deployment, self._timeouts, self._rules.fixed, lambda path: upstream_url(deployment, path)
        )
        self._direct = not (deployment.proxy or deployment.client_cert or deployment.http2)
        self._client: Client | None = None

    @property
    def host(self) -> HiddenStateHost | None:
        """None: this protocol does not reach hidden states."""
        return None

    async def __aenter__(self) -> OpenAIBackend:
        deployment = self._deployment
        if self._direct:
            self._client = Client(
                verify=deployment.ssl_verify,
                timeouts=self._timeouts,
                max_connections=self._max_connections,
                retry_stale=deployment.retry_stale,
            )
        return self

    async def __aexit__(self, *exc: object) -> None:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._control.aclose)
            if self._client is not None:
                stack.push_async_callback(self._client.aclose)

    @asynccontextmanager
    async def __call__(self, request: Request, /) -> AsyncIterator[AsyncIterator[Event]]:
        # The body is the very same object when the name in it is right already.
        body = replace_model(request.body, request.model if self._model == WILDCARD else self._model)
        headers = self._rules.upstream(request.headers)
        url = self._urls[request.endpoint]
        exchange = self.exchange("POST", url, headers, body)
        async with exchange as response, aclosing(await self._events(response, self._named(request))) as events:
            yield events

    def exchange(
        self, method: str, url: str, headers: Headers, body: bytes, *, timeouts: Timeouts | None = None
    ) -> AbstractAsyncContextManager[UpstreamResponse]:
        """One call to the upstream, its answer read inside the block. Raises what `transport.Client` does."""
        send = self._client.request if self._client else self._control.stream
        return send(method, url, headers, body, timeouts=timeouts)

    async def probe(self) -> None:
        """Asks for the models' list, or for anything the upstream answers to when it has none."""
        await self._control.probe(own_key=bool(self._deployment.api_key))

    async def list_models(self) -> tuple[str, ...]:
        """What the upstream's `/models` lists. Raises UpstreamError."""
        return await self._control.list_models()

    async def embeddings(self, body: bytes, headers: Headers = ()) -> tuple[int, Headers, bytes]:
        """Status, headers and body of the upstream's `/embeddings`. Raises UpstreamError for a refusal."""
        if self._model != WILDCARD:
            body = replace_model(body, self._model)
        try:
            status, kept, answer = await self._control.embeddings(body, self._rules.upstream(headers))
        except UpstreamError as error:
            error.retryable = True  # read whole before any of it is handed on
            raise
        if not 200 <= status < 300:
            raise self._refusal(self.name, status, kept, answer)
        return status, kept, answer

    def _refusal(self, name: str, status: int, headers: Headers, body: bytes) -> UpstreamError:
        return refusal(name, status, headers, body, own_key=bool(self._deployment.api_key))

    def _named(self, request: Request) -> str:
        """The name that this answer goes by."""
        return request.model if self.name == WILDCARD else self.name

    async def _events(self, response: UpstreamResponse, name: str) -> AsyncGenerator[Event, None]:
        headers = self._answer_headers(response.headers)
        if not 200 <= response.status < 300:
            raise self._refusal(name, response.status, headers, await response.read(MAX_ERROR_BYTES))
        head = Head(model=name, status=response.status, headers=headers)
        kind, compressed = content_type(response.headers)
        if compressed:
            self._count_unreadable()
            return opaque_events(response, head)
        read = stream_events if kind == b"text/event-stream" else body_events
        return read(response, head, self._count_unreadable)

    def _answer_headers(self, headers: Headers) -> Headers:
        """What of the upstream's headers is seen here."""
        return answer_headers(headers)

    def _count_unreadable(self) -> None:
        self.unreadable_answers += 1
        if self.unreadable_answers == 1:
            _log.warning(
                "%s: an answer could not be read beside forwarding it; such answers get no score", self.name
            )


def _max_connections(deployment: Deployment) -> int | None:
    """Text counts too: so it comes from the environment."""
    value = deployment.params.get("max_connections")
    if value is None:
        return None
    if isinstance(value, bool) or not str(value).isdecimal() or int(value) < 1:
        raise ConfigError(
            f"model {deployment.model_name!r}: max_connections must be a whole number from 1 up, not {value!r}"
        )
    return int(value)


def upstream_url(deployment: Deployment, path: str) -> str:
    """``api_base`` + path. A base without a path gets `/v1`, where every compatible server has its routes."""
    base = deployment.api_base or DEFAULT_BASE
    try:
        parse_url(base)
    except ValueError as error:
        raise ConfigError(f"model {deployment.model_name!r}: api_base: {error}") from None
    parts = urllib.parse.urlsplit(base)
    root = parts.path.rstrip("/") or "/v1"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, root + path, parts.query, ""))
