"""What runs beside the serving: keeping the learned patterns, and watching the backends."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import anyio

from ..engine import SonaEngine
from ..errors import NotReady, SonaError
from ..protocols import Backend, HiddenStateHost, Store

__all__ = ["PATTERNS_BLOB", "Watch", "load_patterns", "restored", "save_patterns", "tend_patterns"]

_log = logging.getLogger(__name__)

PATTERNS_BLOB = "routing/patterns"
_KEEP_EVERY_S = 5.0
_LOADING_POLL_S = 0.2


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
        await anyio.to_thread.run_sync(patterns.tick)
        recorded = int(patterns.get_stats()["trajectories_recorded"])
        if store is not None and recorded != saved:
            await save_patterns(store, patterns)
            saved = recorded


class Watch:
    """Probes every backend now and then; knows which answer."""

    def __init__(self, backends: Mapping[str, Sequence[Backend]], *, interval: float) -> None:
        self._backends, self._interval = backends, interval
        self._problem: dict[tuple[str, int], SonaError | None] = {}
        self._checked_at = float("-inf")

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._probe_all()
            loading = any(isinstance(problem, NotReady) for problem in self._problem.values())
            await anyio.sleep(_LOADING_POLL_S if loading else self._interval)

    async def check(self) -> None:
        """Returns when some backend answers and none in this process is still loading; else raises NotReady."""
        if not self._problem:
            await self._probe_all()
        loading = [p for p in self._problem.values() if isinstance(p, NotReady)]
        if loading:
            raise loading[0]
        if all(problem is not None for problem in self._problem.values()):
            reasons = "; ".join(f"{name}: {problem}" for (name, _), problem in self._problem.items())
            raise NotReady(f"no backend answers ({reasons})")

    async def host(self, name: str) -> HiddenStateHost:
        """Waits until a deployment of this model answers and has a host."""
        while True:
            for index, backend in enumerate(self._backends[name]):
                if self._problem.get((name, index), self) is None and backend.host is not None:
                    return backend.host
            await anyio.sleep(_LOADING_POLL_S / 2)

    def view(self) -> dict[str, Any]:
        """Name -> "ready" or what is wrong, per deployment."""
        shown: dict[str, Any] = {}
        for (name, _), problem in self._problem.items():
            shown.setdefault(name, []).append("ready" if problem is None else str(problem))
        return shown

    async def _probe_all(self) -> None:
        async with anyio.create_task_group() as tasks:
            for name, group in self._backends.items():
                for index, backend in enumerate(group):
                    tasks.start_soon(self._probe, (name, index), backend)
        self._checked_at = time.monotonic()

    async def _probe(self, place: tuple[str, int], backend: Backend) -> None:
        try:
            await backend.probe()
        except SonaError as error:
            if str(error) != str(self._problem.get(place)):
                _log.info("%s: %s", place[0], error)
            self._problem[place] = error
        else:
            if self._problem.get(place, self) is not None:
                _log.info("%s answers", place[0])
            self._problem[place] = None
