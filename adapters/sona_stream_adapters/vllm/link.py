"""Calls to the plug-in, and what its refusals mean here."""

from __future__ import annotations

import json
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from sona_stream.errors import HostAway, HostError, UpstreamError
from sona_stream.events import Headers
from sona_stream.transport import Timeouts
from sona_stream_adapters.openai.answer import UpstreamResponse

__all__ = ["Exchange", "Gone", "HttpLink", "Link", "NoPlugin", "Unserved"]

CONNECT_S = 5.0
ANSWER_S = 300.0
"""A gradient over a large vocabulary on a busy server takes its time."""
MAX_ANSWER_BYTES = 1 << 30
_JSON = (b"content-type", b"application/json")
_TENSORS = (b"content-type", b"application/vnd.safetensors")


class Exchange(Protocol):
    """`OpenAIBackend.exchange`."""

    def __call__(
        self, method: str, url: str, headers: Headers, body: bytes, *, timeouts: Timeouts | None = None
    ) -> AbstractAsyncContextManager[UpstreamResponse]: ...


class Gone(HostError):
    """The server no longer holds these captures."""

    def __init__(self, message: str, handles: tuple[str, ...]) -> None:
        super().__init__(message)
        self.handles = handles


class Unserved(HostError):
    """The hook had no part in an answer, or failed in the middle of it; the message says why."""


class NoPlugin(HostError):
    """The server answers, but its hidden states are out of reach; the message says why."""


class Link(ABC):
    """To one model. Raises HostAway when it does not answer, HostError with its own words when it refuses."""

    def __init__(self, name: str) -> None:
        self._name = name

    @abstractmethod
    async def call(
        self, method: str, path: str, body: bytes = b"", *, tensors: bool = False, **query: object
    ) -> bytes:
        """The body of the answer. ``tensors``: the body sent is safetensors, not JSON."""

    async def json(self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: object) -> Any:
        """A call whose answer is JSON."""
        sent = b"" if body is None else json.dumps(body).encode()
        try:
            return json.loads(await self.call(method, path, sent, tensors=False, **query))
        except ValueError as error:
            raise HostError(f"{self._name}: the plug-in's answer is not JSON") from error

    async def tensors(self, method: str, path: str, body: bytes, **query: object) -> bytes:
        """A call with a safetensors body."""
        return await self.call(method, path, body, tensors=True, **query)

    def _refused(self, status: int, message: str, kind: str, gone: tuple[str, ...]) -> Exception:
        told = f"{self._name}: {message}"
        if kind == "capture_gone":
            return Gone(told, gone)
        if kind == "unserved":
            return Unserved(told)
        if kind == "no_hook":
            return NoPlugin(told)
        if status in (429, 502, 503, 504):
            return HostAway(told)
        return HostError(told)


class HttpLink(Link):
    """To a server."""

    def __init__(self, name: str, url: Callable[[str], str], headers: Headers, exchange: Exchange) -> None:
        """``headers`` bear the control key; ``url`` completes a path below the server's ``/v1``."""
        super().__init__(name)
        self._url, self._exchange = url, exchange
        self._headers = tuple(pair for pair in headers if pair[0] != b"content-type")
        self._timeouts = Timeouts(CONNECT_S, ANSWER_S, ANSWER_S)

    async def call(
        self, method: str, path: str, body: bytes = b"", *, tensors: bool = False, **query: object
    ) -> bytes:
        """The body of the answer."""
        url = self._url(f"/sona/{path}")
        if query:
            url += f"?{urllib.parse.urlencode({name: str(value) for name, value in query.items()})}"
        headers = (*self._headers, _TENSORS if tensors else _JSON)
        try:
            async with self._exchange(method, url, headers, body, timeouts=self._timeouts) as answer:
                status, told = answer.status, await answer.read(MAX_ANSWER_BYTES)
        except UpstreamError as error:
            raise HostAway(f"{self._name}: the server's hidden states are out of reach now: {error}") from error
        if 200 <= status < 300:
            return told
        raise self._refusal(path, status, told)

    def _refusal(self, path: str, status: int, body: bytes) -> Exception:
        message, kind, gone = _error(body)
        if kind == "invalid_control_key":
            return NoPlugin(
                f"{self._name}: the server refuses litellm_params.control_key (it is not its SONA_VLLM_KEY)"
            )
        if status == 404 and not kind.startswith("host") and path == "info":
            return NoPlugin(
                f"{self._name}: the server has no plug-in at /v1/sona (SONA_VLLM=1, VLLM_PLUGINS=sona,sona_http)"
            )
        if status == 401:
            return NoPlugin(f"{self._name}: the server refuses litellm_params.api_key (401)")
        return self._refused(status, message or f"the server answers {status} at /v1/sona/{path}", kind, gone)


def _error(body: bytes) -> tuple[str, str, tuple[str, ...]]:
    """(message, type, handles that are gone) of an error in OpenAI's form."""
    try:
        error = json.loads(body)["error"]
        gone = tuple(one for one in error.get("gone") or () if isinstance(one, str))
        return str(error.get("message") or ""), str(error.get("type") or ""), gone
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", "", ()
