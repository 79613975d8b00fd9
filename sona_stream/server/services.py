"""What the server asks of the assembled program. `sona_stream.app` provides it; nothing here is implemented.

It is structural: the floor below need not import this module. Views are plain JSON-able mappings, so that what
the rooms measure can grow without the server knowing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..config.settings import Settings
from ..episodes import Scope
from ..events import AdapterRef, Headers, Principal
from ..protocols import FeedbackSink, Handler, Store

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.registry import Collector

__all__ = ["Services", "View"]

View = Mapping[str, Any]
"""A JSON-able mapping."""


class Services(Protocol):
    """One running program. Errors are `sona_stream.errors`; the server maps them to HTTP."""

    @property
    def settings(self) -> Settings: ...
    @property
    def registry(self) -> CollectorRegistry:
        """Of `prometheus_client`: the server adds its own metrics to it and serves all of it at ``/metrics``.

        ``CollectorRegistry(auto_describe=True)`` of its own, never the global one.
        """
        ...

    @property
    def live(self) -> Sequence[Collector]:
        """More for ``/metrics``, not in the registry: they read what belongs to the event loop, so they are asked
        there, and take a millisecond.
        """
        ...

    @property
    def pipeline(self) -> Handler:
        """All stages down to the backends."""
        ...

    @property
    def store(self) -> Store: ...
    @property
    def feedback(self) -> FeedbackSink: ...

    async def startup(self) -> None:
        """Returns once requests may come; a model that still loads is `readiness`' business. An error here ends
        the program with its message.
        """
        ...

    async def shutdown(self) -> None:
        """Every request has ended or was cancelled by now. Nothing learned is lost after it returns."""
        ...

    async def readiness(self) -> None:
        """Returns when a model would answer; raises NotReady, whose message says what is missing.

        Another error of ours says that none ever will: `run.serve` then ends with it.
        """
        ...

    async def embeddings(self, model: str, body: bytes, headers: Headers = ()) -> tuple[int, Headers, bytes]:
        """`/v1/embeddings` of this ``model_name``: (status, headers, body). Raises NotFound. ``headers``: what the
        client sent and a backend may see.
        """
        ...

    async def models(self) -> Sequence[str]:
        """Every name that can be asked for but the alias that routes."""
        ...

    async def pin(self, adapter: AdapterRef) -> None:
        """Make exactly this version available in its host for a request that asks for it. Raises NotFound."""
        ...

    async def stats(self) -> View: ...
    async def patterns(self) -> Sequence[View]: ...
    async def adapters(self, tenant: str | None = None) -> Sequence[View]:
        """Newest version last within a key; no weights. `tenant`: of it and its end users alone."""
        ...

    async def adapter(self, key: str, version: int) -> View:
        """One version in full, without its weights. Raises NotFound."""
        ...

    async def difference(self, key: str, one: int, other: int) -> View:
        """How two versions of a key differ (0: the base model). Raises NotFound."""
        ...

    async def rollback(self, key: str, version: int) -> View:
        """Serve this version (0: the base model) of this key from now on. Raises NotFound."""
        ...

    async def undo(self, principal: Principal, model: str | None = None, request_id: str | None = None) -> View:
        """Take back the newest feedback of this person that still stands, on this request or on any: out of the
        memory and out of the weights. Raises NotFound, and FeedbackConflict when it cannot be taken back.
        """
        ...

    async def episodes(
        self, tenant: str | None, person: str | None, scope: Scope | None, limit: int
    ) -> Sequence[View]:
        """What is remembered, newest first; None: whichever."""
        ...

    async def export_episodes(self, tenant: str | None, after: int, limit: int) -> tuple[bytes, int | None]:
        """Up to `limit` remembered answers above number `after` as JSON lines, and the last one's number; None:
        there was none. Raises NotFound.
        """
        ...

    async def promote(self, key: str, scope: Scope, *, by: str) -> View:
        """Let the whole tenant, or everybody, have this episode. Raises NotFound, InvalidRequest."""
        ...

    async def forget(self, tenant: str | None, keys: Sequence[str] | None, person: str | None) -> View:
        """Delete these episodes, or all of a person or tenant. Raises NotFound, InvalidRequest."""
        ...

    async def freeze(self) -> View:
        """Stop publishing new versions; what is learned is still kept."""
        ...

    async def thaw(self) -> View: ...
