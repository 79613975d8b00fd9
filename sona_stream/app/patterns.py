"""Keeping the learned patterns: read at the start, written now and then and in the end."""

from __future__ import annotations

import logging

import anyio

from ..engine import SonaEngine
from ..errors import SonaError
from ..protocols import Store

__all__ = ["PATTERNS_BLOB", "load_patterns", "restored", "save_patterns", "tend_patterns"]

_log = logging.getLogger(__name__)

PATTERNS_BLOB = "routing/patterns"
_KEEP_EVERY_S = 5.0


async def load_patterns(store: Store, empty: SonaEngine) -> SonaEngine:
    """The pattern bank of an earlier run, or the given empty one when there is none or it does not fit."""
    return await restored(await store.get_blob(PATTERNS_BLOB), empty)


async def restored(data: bytes | None, empty: SonaEngine) -> SonaEngine:
    """The bank in these bytes, or the given empty one."""
    if data is None:
        return empty
    try:
        return await anyio.to_thread.run_sync(lambda: SonaEngine.from_bytes(data, config=empty.config))
    except (SonaError, ValueError) as error:
        _log.warning("the kept patterns do not fit this configuration and start anew: %s", error)
        return empty


async def save_patterns(store: Store, patterns: SonaEngine) -> None:
    """Into the store, now."""
    await store.put_blob(PATTERNS_BLOB, await anyio.to_thread.run_sync(patterns.to_bytes))


async def tend_patterns(patterns: SonaEngine, store: Store | None) -> None:
    """Every few seconds the engine's own background work and, with a store, a snapshot of what is new."""
    saved = -1
    while True:
        await anyio.sleep(_KEEP_EVERY_S)
        try:
            await anyio.to_thread.run_sync(patterns.tick)
            recorded = int(patterns.get_stats()["trajectories_recorded"])
            if store is not None and recorded != saved:
                await save_patterns(store, patterns)
                saved = recorded
        except Exception:  # a full disk, say: answers go on, and the next round tries again
            _log.exception("the patterns could not be tended")
