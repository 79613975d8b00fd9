"""The writing side of the memory: what is stored, superseded, moved, forgotten, and kept within bounds."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...config.settings import MemorySettings
from ...episodes import (
    Along,
    Dropped,
    Episode,
    EpisodeRecord,
    EpisodeStore,
    NewEpisode,
    Scope,
    key_of,
    number_of,
)
from ...errors import InvalidRequest, NotFound
from ...kernels import Kernels
from ...lora import HiddenSpace
from .encoding import Head, body_of, head_bytes
from .index import circle_of
from .recollection import Recollection
from .records import is_said_anew, unnumbered, viewer_of
from .sketch import known_by
from .worth import born

__all__ = ["Remembered", "Undone", "Writing"]

_CHUNK = 500
_WIDTH: dict[Scope, int] = {"person": 0, "tenant": 1, "global": 2}


@dataclasses.dataclass(frozen=True, slots=True)
class Remembered:
    """What `remember` did."""

    episode: Episode
    superseded: tuple[str, ...] = ()
    """Keys of older answers to the same question that are not used any more"""
    known: bool = False
    """Nothing was stored: this judgement, or a correction that an accepted answer does not overrule, was there"""


@dataclasses.dataclass(frozen=True, slots=True)
class Undone:
    """What `undo` did."""

    episode: Episode
    """that is gone"""
    returned: tuple[str, ...]
    """Keys of what it had superseded and is used again"""


class Writing:
    """One write at a time; the index follows the store. Whoever calls lets it finish (`finishing.finish`)."""

    def __init__(
        self,
        reading: Recollection,
        store: EpisodeStore,
        kernels: Kernels,
        settings: MemorySettings,
        half_life: float,
        ttl_s: float,
        gone: Callable[[Sequence[str]], None],
    ) -> None:
        self._reading, self._index, self._store = reading, reading.index, store
        self._kernels, self._settings = kernels, settings
        self._half_life, self._ttl_s, self._gone = half_life, ttl_s, gone
        self._lock = asyncio.Lock()
        self.counters: Counter[str] = Counter()

    async def load(self) -> None:
        """Read what there is, and keep within the bounds as they are set now."""
        self._index.reserve(await self._store.count())
        after = 0
        while chunk := await self._store.entries(after=after, limit=_CHUNK):
            for entry in chunk:
                if len(entry.static) == self._index.dim:
                    self._index.add(entry)
            after = chunk[-1].number
        for fingerprint, space in await self._store.spaces():
            self._reading.spaces[fingerprint, space.version] = space
        async with self._lock:
            for tenant in self._index.tenants():
                await self._keep_within(tenant)

    # -- one episode ------------------------------------------------------------------------------------------

    async def remember(self, record: EpisodeRecord) -> Remembered:
        """See `EpisodeMemory.remember`."""
        limit = self._settings.max_tokens
        hidden, ids = record.hidden[:limit], np.asarray(record.token_ids[:limit], np.int32)
        body = await asyncio.to_thread(body_of, hidden, ids, record.space, self._kernels)
        static, head = known_by(record, self._reading.reader, self._kernels)
        viewer = viewer_of(record)
        circle = circle_of(viewer.model, viewer.fingerprint, "person", viewer.tenant, viewer.person)
        async with self._lock:
            rivals = self._reading.same_in(circle, static, head)
            known = self._reading.known(rivals, viewer, static, head, record.kind, ids)
            new = NewEpisode(
                episode=unnumbered(record, len(ids)),
                static=static.values.tobytes(),
                standing=born(time.time(), self._half_life),
                head=head_bytes(head),
                body=body,
                space=record.space,
            )
            if known is not None:
                number, there = self._index.number(known), await self._one(self._index.number(known))
                before = self._reading.head(known, number)
                if before is None or not is_said_anew(there, record):
                    return Remembered(there, known=True)
                new, rivals = self._anew(new, known, before), [known]
            else:
                rivals = self._reading.replaced(viewer, "person", static, head, record.kind)
            number, superseded = await self._put(new, rivals)
            await self._keep_within(record.tenant, spare=number)
            return Remembered(await self._one(number), superseded)

    def _anew(self, new: NewEpisode, slot: int, head: Head) -> NewEpisode:
        """The same was said of the same question: it is known by what it was known by, and lasts as a new one."""
        row = self._index.rows[slot]
        return dataclasses.replace(
            new,
            static=self._index.codes(slot).values.tobytes(),
            standing=max(new.standing, float(row["standing"])),
            head=head_bytes(dataclasses.replace(head, space_version=new.space.version)),
            rank=int(row["rank"]),
        )

    async def undo(self, key: str) -> Undone | None:
        """See `EpisodeMemory.undo`."""
        async with self._lock:
            found = [one for one in await self._store.find([number_of(key) or 0]) if one.key == key]
            if not found:
                return None
            dropped = await self._drop([found[0].number], along="none")
            returned = await self._store.find([entry.number for entry in dropped.returned])
            return Undone(found[0], tuple(one.key for one in returned))

    async def promote(self, key: str, scope: Scope, by: str) -> Episode:
        """See `EpisodeMemory.promote`."""
        async with self._lock:
            slot = self._slot(key)
            number = self._index.number(slot)
            episode = await self._one(number)
            if _WIDTH[scope] <= _WIDTH[episode.scope]:
                raise InvalidRequest(
                    f"episode {key} has the scope {episode.scope!r}; {scope!r} is no wider one", param="scope"
                )
            if episode.superseded_by is not None:
                raise InvalidRequest(f"a newer answer stands for episode {key}; promote that one", param="key")
            head = self._reading.head(slot, number)
            if head is None:
                raise NotFound(f"episode {key} cannot be read any more")
            rivals = self._reading.replaced(viewer_of(episode), scope, self._index.codes(slot), head)
            numbers = [self._index.number(one) for one in rivals]
            entry = await self._store.move(number, scope=scope, by=by, supersede=numbers)
            if entry is None:
                raise NotFound(f"episode {key} is gone")
            self._index.move(self._slot(key), entry)
            self._supersede(numbers)
            return await self._one(number)

    async def renew(
        self,
        key: str,
        fingerprint: str,
        hidden: NDArray[np.float32],
        token_ids: NDArray[np.int32],
        space: HiddenSpace,
    ) -> Episode:
        """See `EpisodeMemory.renew`."""
        limit = self._settings.max_tokens
        body = await asyncio.to_thread(body_of, hidden[:limit], token_ids[:limit], space, self._kernels)
        async with self._lock:
            slot = self._slot(key)
            old = await self._one(self._index.number(slot))
            head = self._reading.head(slot, old.number)
            if head is None:
                raise NotFound(f"episode {key} cannot be read any more")
            tokens = min(len(token_ids), limit)
            episode = dataclasses.replace(old, fingerprint=fingerprint, tokens=tokens, answer_tokens=len(token_ids))
            row = self._index.rows[slot]
            older: list[int] = []
            if old.superseded_by is None:
                older, newer = self._reading.beside(slot, viewer_of(episode), old.scope, head)
                if newer is not None:
                    episode = dataclasses.replace(episode, superseded_by=self._index.number(newer))
            new = NewEpisode(
                episode=episode,
                static=self._index.codes(slot).values.tobytes(),
                standing=float(row["standing"]),
                head=head_bytes(dataclasses.replace(head, space_version=space.version)),
                body=body,
                space=space,
                rank=int(row["rank"]),
            )
            number, _ = await self._put(new, older, replace=old.number)
            self._forget_slots([old.number])
            self.counters["renewed"] += 1
            return await self._one(number)

    async def forget(self, tenant: str | None, keys: Sequence[str] | None, person: str | None) -> tuple[str, ...]:
        """See `EpisodeMemory.forget`."""
        async with self._lock:
            if keys is None:
                found = await self._store.latest(tenant=tenant, person=person, limit=1 << 30)
            else:
                slots = [slot for slot in map(self._reading.slot, keys) if slot is not None]
                found = await self._store.find([self._index.number(slot) for slot in slots])
                found = [one for one in found if tenant in (None, one.tenant) and person in (None, one.person)]
            before = {one.number: one.key for one in found}
            dropped = await self._drop(list(before), along="own" if keys is None else "all")
            return tuple(before[number] for number in dropped.numbers if number in before)

    # -- all of them ------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """See `EpisodeMemory.settle`."""
        await self.write_uses()
        async with self._lock:
            if not self._store.durable:  # a durable store lets go of what has expired by itself
                old = [
                    one.number
                    for one in await self._store.latest(limit=1 << 30)
                    if one.stored_at < time.time() - self._ttl_s
                ]
                self._store.expired += len((await self._drop(old, along="all")).numbers)
            while moved := await self._store.compact():
                for number, place in moved.items():
                    slot = self._index.slot_of(number)
                    if slot is not None:
                        self._index.set_place(slot, place)

    async def write_uses(self) -> None:
        """How often episodes were used since the last time, and what they are worth by that."""
        uses = dict(self._reading.uses)
        self._reading.uses.clear()
        slots = {number: self._index.slot_of(number) for number in uses}
        rows = self._index.rows
        known = {
            number: (count, float(rows["standing"][slot]))
            for number, count in uses.items()
            if (slot := slots[number]) is not None
        }
        if known:
            await self._store.use(known)

    def left(self, dropped: Dropped) -> None:
        """From the store, or they can't be read."""
        self._forget_slots(dropped.numbers)
        for entry in dropped.returned:
            slot = self._index.slot_of(entry.number)
            if slot is not None:
                self._index.move(slot, entry)

    async def _keep_within(self, tenant: str, spare: int = 0) -> None:
        """Drop what is worth least while the tenant, or all of them, have too much; never `spare`."""
        limits, mb = self._settings, 1 << 20
        count, size = self._index.usage(tenant)
        await self._drop_least(tenant, count - limits.tenant_episodes, size - limits.tenant_mb * mb, spare)
        most = (limits.mb if self._store.durable else limits.volatile_mb) * mb
        while len(self._index) > limits.episodes or self._index.total_bytes() > most:
            before = len(self._index)
            largest = self._index.tenants()[0]
            await self._drop_least(
                largest, len(self._index) - limits.episodes, self._index.total_bytes() - most, spare
            )
            if len(self._index) == before:
                return

    async def _drop_least(self, tenant: str, count: int, size: int, spare: int) -> None:
        if count <= 0 and size <= 0:
            return
        chosen: list[int] = []
        for number, length in self._index.least_useful(tenant):
            if count <= 0 and size <= 0:
                break
            if number != spare:
                chosen.append(number)
                count, size = count - 1, size - length
        dropped = await self._drop(chosen, along="all")
        self.counters["evicted"] += len(dropped.numbers)

    async def _drop(self, numbers: Sequence[int], *, along: Along) -> Dropped:
        if not numbers:
            return Dropped([], [])
        dropped = await self._store.drop(numbers, along=along)
        self.left(dropped)
        return dropped

    def _forget_slots(self, numbers: Iterable[int]) -> None:
        gone = self._index.remove(numbers)
        for number, _ in gone:
            self._reading.uses.pop(number, None)
        self._gone([key_of(number, stamp) for number, stamp in gone])

    async def _put(
        self, new: NewEpisode, rivals: Sequence[int], replace: int | None = None
    ) -> tuple[int, tuple[str, ...]]:
        """-> its number, and the keys of what it superseded"""
        rows = self._index.rows[list(rivals)]
        numbers = rows["number"].tolist()
        entry = await self._store.put(new, supersede=numbers, replace=replace)
        self._index.add(entry)
        self._supersede(numbers)
        self._reading.spaces[entry.fingerprint, new.space.version] = new.space
        return entry.number, tuple(map(key_of, numbers, rows["stamp"].tolist()))

    def _supersede(self, numbers: Sequence[int]) -> None:
        """By number: what has left meanwhile is not here any more."""
        for slot in map(self._index.slot_of, numbers):
            if slot is not None:
                self._index.supersede(slot)

    async def _one(self, number: int) -> Episode:
        found = await self._store.find([number])
        if not found:
            raise NotFound(f"episode {number} is gone")
        return found[0]

    def _slot(self, key: str) -> int:
        slot = self._reading.slot(key)
        if slot is None:
            raise NotFound(f"there is no episode {key}")
        return slot
