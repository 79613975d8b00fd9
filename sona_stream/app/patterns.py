"""Keeping the learned patterns, a bank a tenant: read when first needed, written when changed and in the end."""

from __future__ import annotations

import dataclasses
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import anyio

from ..engine import LearnedPattern, SonaEngine
from ..engine.learner import AdapterKey
from ..errors import SonaError
from ..protocols import Embedder, Store
from ..store.peek import read_blob

__all__ = ["PatternBanks", "peek"]

_log = logging.getLogger(__name__)

_TEND_EVERY_S = 5.0
_IN_MEMORY = 128
_WAITING = 1024

Lesson = Callable[[SonaEngine], None]


def _name(embedder: Embedder, tenant: str) -> str:
    """Patterns live in one embedder's space: another embedder finds none, and leaves these alone. They are named
    as adapters are, so that the store forgets them with their tenant.
    """
    return str(AdapterKey(f"routing/patterns-{embedder.name}", tenant))


async def peek(directory: Path, embedder: Embedder, tenant: str, empty: Callable[[], SonaEngine]) -> SonaEngine:
    """The bank of a tenant that is kept in a folder, without opening the folder as its owner."""
    data = read_blob(directory, _name(embedder, tenant))
    return await anyio.to_thread.run_sync(_restored, data, empty)


def _restored(data: bytes | None, empty: Callable[[], SonaEngine]) -> SonaEngine:
    """The bank in these bytes, or an empty one when there is none or it does not fit."""
    fresh = empty()
    if data is None:
        return fresh
    try:
        return SonaEngine.from_bytes(data, config=fresh.config)
    except (SonaError, ValueError) as error:
        _log.warning("the kept patterns do not fit this configuration and start anew: %s", error)
        return fresh


@dataclasses.dataclass(slots=True, eq=False)
class _Held:
    """A bank in memory; ``saved``: how much it had learned when it was last written."""

    bank: SonaEngine
    saved: int
    cycles: int = 0

    @property
    def learned(self) -> int:
        """Grows with every trajectory and every cycle of its own background work."""
        return int(self.bank.get_stats()["trajectories_recorded"]) + self.cycles


class PatternBanks:
    """Every tenant's bank under one embedder. Belongs to one event loop; only `learn` never waits.

    ``store`` is None where nothing may be kept (`sona.storage: none`). Beyond ``limit`` banks those that were not
    used for longest are written and leave memory.
    """

    def __init__(
        self, empty: Callable[[], SonaEngine], embedder: Embedder, store: Store | None, *, limit: int = _IN_MEMORY
    ) -> None:
        self._empty, self._embedder, self._store, self._limit = empty, embedder, store, limit
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._opening = anyio.Lock()
        self._saving = anyio.Lock()
        self._crowded = anyio.Event()
        self._waiting: deque[tuple[str, Lesson]] = deque()
        self.drops = 0
        """Lessons that found their tenant's bank out of memory and the queue for it full."""

    async def load(self, tenants: Iterable[str]) -> None:
        """Those of these tenants' banks that an earlier run kept, as far as they fit."""
        for tenant in tenants:
            data = await self._kept(tenant)
            if data is not None and len(self._held) < self._limit:
                await self._hold(tenant, data)

    async def of(self, tenant: str) -> SonaEngine:
        """Never fails: while a bank cannot be read, routing goes on without it."""
        held = self._held.get(tenant)
        if held is not None:
            self._held.move_to_end(tenant)
            return held.bank
        try:
            return (await self._open(tenant)).bank
        except SonaError as error:
            _log.warning("the patterns of tenant %r cannot be read now: %s", tenant, error)
            return await anyio.to_thread.run_sync(self._empty)

    def learn(self, tenant: str, lesson: Lesson) -> None:
        """Call ``lesson`` with the tenant's bank: at once, or soon when that has left memory."""
        held = self._held.get(tenant)
        if held is not None:
            lesson(held.bank)
        elif len(self._waiting) < _WAITING:
            self._waiting.append((tenant, lesson))
        else:
            self.drops += 1

    async def tend(self) -> None:
        """Every few seconds the engines' own background work, and a snapshot of each that has learned."""
        while True:
            with anyio.move_on_after(_TEND_EVERY_S):
                await self._crowded.wait()
            self._crowded = anyio.Event()
            try:
                await anyio.to_thread.run_sync(self._tick, tuple(self._held.values()))
                await self.save()
                self._make_room()
            except Exception:  # a full disk, say: answers go on, and the next round tries again
                _log.exception("the patterns could not be tended")

    async def save(self) -> None:
        """What is new, into the store, now."""
        while self._waiting:
            tenant, lesson = self._waiting[0]
            lesson((await self._open(tenant)).bank)
            self._waiting.popleft()
        if self._store is None:
            return
        async with self._saving:
            for tenant, held in tuple(self._held.items()):
                learned = held.learned
                if learned != held.saved:
                    data = await anyio.to_thread.run_sync(_snapshot, held.bank)
                    await self._store.put_blob(_name(self._embedder, tenant), data)
                    held.saved = learned

    def patterns(self) -> list[tuple[str, LearnedPattern]]:
        """(tenant, pattern) of every bank in memory."""
        return [(tenant, one) for tenant, held in self._held.items() for one in held.bank.patterns()]

    def stats(self) -> dict[str, Any]:
        """`SonaEngine.get_stats` over all banks in memory: numbers are sums, switches are of any."""
        every = [held.bank.get_stats() for held in self._held.values()] or [self._empty().get_stats()]
        total = {
            name: any(one[name] for one in every) if isinstance(value, bool) else sum(one[name] for one in every)
            for name, value in every[0].items()
        }
        recorded, dropped = total["trajectories_recorded"], total["trajectories_dropped"]
        total["buffer_success_rate"] = 1.0 - dropped / recorded if recorded else 1.0
        return {**total, "tenants_in_memory": len(self._held), "lessons_dropped": self.drops}

    async def _open(self, tenant: str) -> _Held:
        async with self._opening:
            return self._held.get(tenant) or await self._hold(tenant, await self._kept(tenant))

    async def _kept(self, tenant: str) -> bytes | None:
        return None if self._store is None else await self._store.get_blob(_name(self._embedder, tenant))

    async def _hold(self, tenant: str, data: bytes | None) -> _Held:
        bank = await anyio.to_thread.run_sync(_restored, data, self._empty)
        held = self._held[tenant] = _Held(bank, int(bank.get_stats()["trajectories_recorded"]))
        if len(self._held) > self._limit:
            self._crowded.set()
        return held

    def _tick(self, every: Iterable[_Held]) -> None:
        for held in every:
            held.cycles += held.bank.tick() is not None

    def _make_room(self) -> None:
        """Only what is written leaves; what has learned since waits for the next round."""
        for tenant, held in tuple(self._held.items())[: max(0, len(self._held) - self._limit)]:
            if self._store is None or held.learned == held.saved:
                del self._held[tenant]


def _snapshot(bank: SonaEngine) -> bytes:
    """Without the trajectories that wait for a cycle: they are single people's embeddings, which neither a
    time limit nor `forget` would reach here.
    """
    return bank.to_bytes(buffer=False)
