"""Episodes in memory only: at `sona.storage: none`, or with a store that keeps none. They end with the process."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable, Mapping, Sequence

from ...episodes import Along, Dropped, Episode, EpisodeEntry, KeptQuestion, NewEpisode, Place, Scope, key_of
from ...lora import HiddenSpace

__all__ = ["VolatileEpisodes"]


@dataclasses.dataclass(slots=True)
class _Kept:
    entry: EpisodeEntry
    episode: Episode
    head: bytes
    body: bytes


class VolatileEpisodes:
    """An `EpisodeStore` that forgets. No text is kept."""

    durable = False

    def __init__(self) -> None:
        self.expired = 0
        self.on_removed: Callable[[Dropped], None] | None = None
        self._kept: dict[int, _Kept] = {}
        self._stands_for: dict[int, dict[int, None]] = {}
        """Number -> what it superseded"""
        self._spaces: dict[tuple[str, str], HiddenSpace] = {}
        self._secret = secrets.token_bytes(32)
        self._numbers = self._ranks = 0

    def secret(self) -> bytes:
        """Never written."""
        return self._secret

    async def put(
        self, new: NewEpisode, *, supersede: Sequence[int] = (), replace: int | None = None
    ) -> EpisodeEntry:
        """At once."""
        self._numbers += 1
        number, stamp = self._numbers, secrets.randbits(63)
        place = Place(0, number, len(new.head) + len(new.body), stamp)
        episode = dataclasses.replace(
            new.episode, number=number, key=key_of(number, stamp), nbytes=place.length, text=None, question=None
        )
        old = None if replace is None else self._kept[replace]
        if old is not None and old.episode.superseded_by is not None:
            episode = dataclasses.replace(episode, superseded_by=old.episode.superseded_by)
        entry = EpisodeEntry(
            number,
            self._next_rank() if new.rank is None else new.rank,
            episode.model,
            episode.fingerprint,
            episode.scope,
            episode.tenant,
            episode.person,
            episode.kind,
            episode.superseded_by,
            new.standing,
            new.static,
            place,
        )
        self._kept[number] = _Kept(entry, episode, new.head, new.body)
        if entry.superseded_by is not None:
            self._stands_for.setdefault(entry.superseded_by, {})[number] = None
        self._spaces.setdefault((episode.fingerprint, new.space.version), new.space)
        for one in supersede:
            self._supersede(one, number)
        if old is not None:
            for other in self._superseded_by(old.entry.number):
                self._supersede(other, number)
            self._remove(old.entry.number)
        return entry

    async def count(self) -> int:
        """Of all."""
        return len(self._kept)

    async def entries(self, *, after: int = 0, limit: int = 1 << 30) -> list[EpisodeEntry]:
        """By number."""
        return [self._kept[number].entry for number in sorted(self._kept) if number > after][:limit]

    async def find(self, numbers: Sequence[int]) -> list[Episode]:
        """By number."""
        return [self._kept[number].episode for number in sorted(set(numbers) & self._kept.keys())]

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
        asked = {"tenant": tenant, "person": person, "scope": scope, "model": model}
        given = {name: value for name, value in asked.items() if value is not None}
        newest = sorted(self._kept.values(), key=lambda kept: -kept.entry.rank)
        found = [
            kept.episode
            for kept in newest
            if feedback in (None, kept.episode.feedback_id)
            and all(getattr(kept.entry, name) == value for name, value in given.items())
        ]
        return found[:limit]

    async def stale(
        self, model: str, fingerprint: str, *, below: int | None = None, limit: int = 1000
    ) -> list[Episode]:
        """The highest number first."""
        numbers = sorted((n for n in self._kept if below is None or n < below), reverse=True)
        known = (self._kept[number].episode for number in numbers)
        return [one for one in known if one.model == model and one.fingerprint != fingerprint][:limit]

    async def move(
        self, number: int, *, scope: Scope, by: str, supersede: Sequence[int] = ()
    ) -> EpisodeEntry | None:
        """As the newest there."""
        kept = self._kept.get(number)
        if kept is None:
            return None
        for one in supersede:
            self._supersede(one, number)
        kept.entry = kept.entry._replace(scope=scope, rank=self._next_rank())
        kept.episode = dataclasses.replace(kept.episode, scope=scope, promoted_by=by, promoted_at=time.time())
        return kept.entry

    async def drop(self, numbers: Sequence[int], *, along: Along = "all") -> Dropped:
        """What they superseded goes, too, or is current again."""
        doomed = [number for number in dict.fromkeys(numbers) if number in self._kept]
        known = set(doomed)
        for number in () if along == "none" else doomed:  # grows while it is walked
            whose = None if along == "all" else self._whose(number)
            for other in self._superseded_by(number):
                if other not in known and whose in (None, self._whose(other)):
                    known.add(other)
                    doomed.append(other)
        returned: list[int] = []
        newest = sorted(doomed, key=lambda one: (self._kept[one].entry.rank, one), reverse=True)
        for number in newest:  # who stands for another comes first: others change once
            others, by = self._superseded_by(number), self._kept[number].entry.superseded_by
            returned += others
            for other in others:
                self._supersede(other, by)
        for number in doomed:
            self._remove(number)
        current = (self._kept[number].entry for number in dict.fromkeys(returned) if number in self._kept)
        return Dropped(doomed, [entry for entry in current if entry.superseded_by is None])

    async def use(self, uses: Mapping[int, tuple[int, float]]) -> None:
        """Those that are there."""
        for number, (more, standing) in uses.items():
            kept = self._kept.get(number)
            if kept is not None:
                kept.entry = kept.entry._replace(standing=standing)
                kept.episode = dataclasses.replace(kept.episode, uses=kept.episode.uses + more)

    async def compact(self) -> dict[int, Place]:
        """There is nothing to give back."""
        return {}

    async def spaces(self) -> list[tuple[str, HiddenSpace]]:
        """(fingerprint, space)"""
        return [(fingerprint, space) for (fingerprint, _), space in self._spaces.items()]

    async def keep_questions(self, kept: Sequence[KeptQuestion]) -> None:
        """Nothing: what is asked is known as long as this process lives."""

    async def question(self, tenant: str, request_id: str) -> bytes | None:
        """None."""
        return None

    def head(self, place: Place) -> bytes | None:
        """None when it is gone."""
        kept = self._at(place)
        return None if kept is None else kept.head

    def body(self, place: Place) -> memoryview | None:
        """None when it is gone."""
        kept = self._at(place)
        return None if kept is None else memoryview(kept.body)

    def _at(self, place: Place) -> _Kept | None:
        kept = self._kept.get(place.offset)
        return kept if kept is not None and kept.entry.place == place else None

    def _next_rank(self) -> int:
        self._ranks += 1
        return self._ranks

    def _superseded_by(self, number: int) -> list[int]:
        return list(self._stands_for.get(number, ()))

    def _whose(self, number: int) -> tuple[str, str]:
        entry = self._kept[number].entry
        return entry.tenant, entry.person

    def _supersede(self, number: int, by: int | None) -> None:
        kept = self._kept[number]
        self._stand_aside(number)
        if by is not None:
            self._stands_for.setdefault(by, {})[number] = None
        kept.entry = kept.entry._replace(superseded_by=by)
        kept.episode = dataclasses.replace(kept.episode, superseded_by=by)

    def _remove(self, number: int) -> None:
        """What it superseded is another's by now, or leaves with it."""
        self._stand_aside(number)
        self._stands_for.pop(number, None)
        del self._kept[number]

    def _stand_aside(self, number: int) -> None:
        """No longer among what another superseded."""
        by = self._kept[number].entry.superseded_by
        others = {} if by is None else self._stands_for.get(by, {})
        others.pop(number, None)
        if by is not None and not others:
            self._stands_for.pop(by, None)
