"""Keeping the learned patterns: read at the start, written now and then and in the end."""

from __future__ import annotations

import logging
from pathlib import Path

import anyio

from ..engine import SonaEngine
from ..errors import SonaError
from ..protocols import Embedder, Store
from ..store.peek import read_blob

__all__ = ["KeptPatterns", "peek"]

_log = logging.getLogger(__name__)

_KEEP_EVERY_S = 5.0


def _name(embedder: Embedder) -> str:
    """Patterns live in one embedder's space: another embedder finds none, and leaves these alone."""
    return f"routing/patterns-{embedder.name}"


async def peek(directory: Path, embedder: Embedder, empty: SonaEngine) -> SonaEngine:
    """The bank that is kept in a folder, without opening the folder as its owner."""
    return await _restored(read_blob(directory, _name(embedder)), empty)


async def _restored(data: bytes | None, empty: SonaEngine) -> SonaEngine:
    """The bank in these bytes, or the given empty one when there is none or it does not fit."""
    if data is None:
        return empty
    try:
        return await anyio.to_thread.run_sync(lambda: SonaEngine.from_bytes(data, config=empty.config))
    except (SonaError, ValueError) as error:
        _log.warning("the kept patterns do not fit this configuration and start anew: %s", error)
        return empty


class KeptPatterns:
    """The pattern bank of an embedder. ``store`` is None where nothing may be kept (`sona.storage: none`)."""

    def __init__(self, bank: SonaEngine, embedder: Embedder, store: Store | None) -> None:
        self.bank = bank
        self._name, self._store = _name(embedder), store

    @classmethod
    async def load(cls, empty: SonaEngine, embedder: Embedder, store: Store | None) -> KeptPatterns:
        """That of an earlier run, where there is one."""
        data = None if store is None else await store.get_blob(_name(embedder))
        return cls(await _restored(data, empty), embedder, store)

    async def save(self) -> None:
        """Into the store, now."""
        if self._store is not None:
            await self._store.put_blob(self._name, await anyio.to_thread.run_sync(self.bank.to_bytes))

    async def tend(self) -> None:
        """Every few seconds the engine's own background work, and a snapshot of what is new."""
        saved = -1
        while True:
            await anyio.sleep(_KEEP_EVERY_S)
            try:
                await anyio.to_thread.run_sync(self.bank.tick)
                recorded = int(self.bank.get_stats()["trajectories_recorded"])
                if recorded != saved:
                    await self.save()
                    saved = recorded
            except Exception:  # a full disk, say: answers go on, and the next round tries again
                _log.exception("the patterns could not be tended")
