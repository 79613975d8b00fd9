"""`episodes.EpisodeStore` on an open state folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from sqlite3 import Connection

from ..config.settings import Storage
from ..episodes import Along, Dropped, Episode, EpisodeEntry, KeptQuestion, NewEpisode, Place, Scope
from ..lora import HiddenSpace
from . import episodes, questions, superseding
from .segments import Segments
from .session import Session

__all__ = ["SqliteEpisodes"]

_log = logging.getLogger("sona_stream.store")

_LEAST_DEAD = 0.5
"""Share of a segment that must be dead before the rest is moved."""


class SqliteEpisodes:
    """Raises StateError while the store is not open, or when the folder cannot be written."""

    durable = True

    def __init__(self, session: Callable[[], Session], storage: Storage) -> None:
        self._session = session
        self._keep_text = storage == "text"
        self.expired = 0
        self.on_removed: Callable[[Dropped], None] | None = None

    def secret(self) -> bytes:
        """Made with the state folder."""
        return self._session().secret

    async def put(
        self, new: NewEpisode, *, supersede: Sequence[int] = (), replace: int | None = None
    ) -> EpisodeEntry:
        """Bytes first, row second."""
        session = self._session()

        def run(connection: Connection) -> tuple[EpisodeEntry, list[Place]]:
            entry = episodes.put(connection, session.segments, new, keep_text=self._keep_text)
            superseding.supersede(connection, supersede, entry.number)
            if replace is None:
                return entry, []
            superseding.inherit(connection, replace, entry.number)
            return entry, episodes.delete(connection, [replace])

        entry, _ = await session.write(run, lambda done: session.segments.erase(done[1]))
        return entry

    async def count(self) -> int:
        """Of all rows."""
        return await self._session().read(episodes.count)

    async def entries(self, *, after: int = 0, limit: int = 1 << 30) -> list[EpisodeEntry]:
        """By number, of those above `after`."""
        where = "WHERE number > ? ORDER BY number LIMIT ?"
        return await self._session().read(lambda c: episodes.entries(c, where, after, limit))

    async def find(self, numbers: Sequence[int]) -> list[Episode]:
        """By number."""
        return await self._session().read(lambda c: episodes.find(c, numbers))

    async def latest(
        self,
        *,
        tenant: str | None = None,
        person: str | None = None,
        scope: Scope | None = None,
        model: str | None = None,
        feedback: str | None = None,
        limit: int = 1000,
    ) -> list[Episode]:
        """Newest first."""
        return await self._session().read(
            lambda c: episodes.latest(
                c, tenant=tenant, person=person, scope=scope, model=model, feedback=feedback, limit=limit
            )
        )

    async def stale(
        self, model: str, fingerprint: str, *, below: int | None = None, limit: int = 1000
    ) -> list[Episode]:
        """The highest number first."""
        return await self._session().read(lambda c: episodes.stale(c, model, fingerprint, below, limit))

    async def move(
        self, number: int, *, scope: Scope, by: str, supersede: Sequence[int] = ()
    ) -> EpisodeEntry | None:
        """Into another scope, as the newest there."""

        def run(connection: Connection) -> EpisodeEntry | None:
            superseding.supersede(connection, supersede, number)
            return episodes.move(connection, number, scope, by)

        return await self._session().write(run)

    async def drop(self, numbers: Sequence[int], *, along: Along = "all") -> Dropped:
        """The rows, then the bytes."""
        session = self._session()

        def run(connection: Connection) -> tuple[Dropped, list[Place]]:
            gone = superseding.with_superseded(connection, numbers, along)
            returned = superseding.revive(connection, gone)
            return Dropped(gone, returned), episodes.delete(connection, gone)

        def after(done: tuple[Dropped, list[Place]]) -> None:
            session.erase_if(bool(done[1]))
            session.segments.erase(done[1])

        dropped, _ = await session.write(run, after)
        return dropped

    async def use(self, uses: Mapping[int, tuple[int, float]]) -> None:
        """Number -> (further uses, standing)."""
        await self._session().write(lambda c: episodes.use(c, uses))

    async def compact(self) -> dict[int, Place]:
        """Removes segments that no row names; moves the records of the one that has most to give back."""
        session = self._session()

        def run(connection: Connection) -> tuple[dict[int, Place], list[int]]:
            live, sizes = episodes.bytes_by_segment(connection), session.segments.sizes()
            empty = [number for number in sizes if number not in live]
            dead = {n: size - live[n] for n, size in sizes.items() if n in live and n != max(sizes)}
            worst = max(dead, key=dead.__getitem__, default=None)
            if worst is None or dead[worst] < _LEAST_DEAD * sizes[worst]:
                return {}, empty
            return _moved(connection, session.segments, worst), empty

        places, _ = await session.write(run, lambda done: session.segments.remove(done[1]))
        return places

    async def spaces(self) -> list[tuple[str, HiddenSpace]]:
        """(fingerprint, space)"""
        return await self._session().read(episodes.spaces)

    async def keep_questions(self, kept: Sequence[KeptQuestion]) -> None:
        """Durable when it returns."""
        if kept:
            await self._session().write(lambda c: questions.put(c, kept))

    async def question(self, tenant: str, request_id: str) -> bytes | None:
        """None when there is none, or it has expired."""
        return await self._session().read(lambda c: questions.find(c, tenant, request_id))

    def head(self, place: Place) -> bytes | None:
        """From any thread."""
        record = self._session().segments.read(place)
        return None if record is None else record.checked_head()

    def body(self, place: Place) -> memoryview | None:
        """In the memory map, perhaps with zeros behind its end."""
        record = self._session().segments.read(place)
        return None if record is None else record.checked_body()

    def announce(self, dropped: Dropped) -> None:
        """By retention, or because somebody is forgotten."""
        if dropped.numbers and self.on_removed is not None:
            self.on_removed(dropped)


def _moved(connection: Connection, segments: Segments, segment: int) -> dict[int, Place]:
    """Damaged records stay behind, where `state verify` finds them."""
    rows = episodes.places_in(connection, segment)
    sound = {number: place for number, place in rows.items() if segments.is_sound(place)}
    if len(sound) < len(rows):
        _log.error("%d episodes of segment %d are damaged", len(rows) - len(sound), segment)
    moved = dict(zip(sound, segments.move(list(sound.values())), strict=True))
    episodes.relocate(connection, moved)
    return moved
