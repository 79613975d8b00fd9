"""The memory's part of the assembled program: what feedback and admins ask of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ..episodes import Scope
from ..errors import NotFound, SonaError
from ..events import Feedback
from .memory import Memories

__all__ = ["MemoryServices"]

_log = logging.getLogger(__name__)

View = Mapping[str, Any]


class MemoryServices:
    """See `server.services.Services` for all but `_remember`."""

    _memory: Memories | None

    async def _remember(self, feedback: Feedback) -> None:
        """Before the reply, so that the very next answer shows it. What goes wrong here the learner tries again."""
        if self._memory is not None and feedback.kind == "correction":
            try:
                await self._memory.correct(feedback)
            except SonaError as error:
                _log.warning("correction %s is remembered later: %s", feedback.id, error)
            except Exception:  # the correction itself is committed
                _log.exception("correction %s is remembered later", feedback.id)

    async def episodes(
        self, tenant: str | None, person: str | None, scope: Scope | None, limit: int
    ) -> Sequence[View]:
        """See `Services`."""
        if self._memory is None:
            return []
        found = await self._memory.memory.episodes(tenant=tenant, person=person, scope=scope, limit=limit)
        return [self._memory.view(episode) for episode in found]

    async def export_episodes(self, tenant: str | None, after: int, limit: int) -> tuple[bytes, int | None]:
        """See `Services`."""
        return await self._remembering().export(tenant, after, limit)

    async def promote(self, key: str, scope: Scope, *, by: str) -> View:
        """See `Services`."""
        memories = self._remembering()
        return memories.view(await memories.memory.promote(key, scope, by=by))

    async def forget(self, tenant: str | None, keys: Sequence[str] | None, person: str | None) -> View:
        """See `Services`."""
        gone = await self._remembering().memory.forget(tenant=tenant, keys=keys, person=person)
        return {"forgotten": list(gone)}

    def _remembering(self) -> Memories:
        if self._memory is None:
            raise NotFound("nothing is remembered here: see sona.memory.enabled and sona.learning")
        return self._memory
