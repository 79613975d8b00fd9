"""Calls to a plug-in whose engines this process holds: no HTTP, no key."""

from __future__ import annotations

import json
import logging

from sona_stream.errors import HostAway, HostError
from sona_stream_adapters.vllm_plugin.messages import Question, Unanswered
from sona_stream_adapters.vllm_plugin.routes import Routes

from .link import Link

__all__ = ["EngineLink"]

_log = logging.getLogger(__name__)


class EngineLink(Link):
    """While an engine is attached; else every call raises HostAway."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._routes: Routes | None = None

    @property
    def attached(self) -> bool:
        """Whether there is one that has the hook."""
        return self._routes is not None

    def attach(self, routes: Routes | None) -> None:
        """Another start of the engine, or none."""
        self._routes = routes

    async def off(self) -> str:
        """Why the hook is off; empty while it works. What is asked of the engine after this call comes after it."""
        return "" if self._routes is None else await self._routes.watch.off()

    async def call(
        self, method: str, path: str, body: bytes = b"", *, tensors: bool = False, **query: object
    ) -> bytes:
        """The body of the answer."""
        if self._routes is None:
            raise HostAway(f"{self._name}: the engine does not run now")
        asked = Question({name: [str(value)] for name, value in query.items()}, body)
        try:
            answer = await self._routes.ask(method, path, asked)
        except Unanswered as refusal:
            gone = tuple(refusal.more.get("gone") or ())
            raise self._refused(refusal.status, str(refusal), refusal.kind, gone) from refusal
        except Exception as error:
            _log.exception("%s: %s %s failed", self._name, method, path)
            raise HostError(f"{self._name}: the plug-in failed: {error or type(error).__name__}") from error
        return answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
