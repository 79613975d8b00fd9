"""The memory of episodes: a corrected answer is given again to the same question, for those it was meant for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...budgets import Budget
from ...config.settings import MemorySettings, Storage, StorageSettings
from ...episodes import (
    Dropped,
    Episode,
    EpisodeRecord,
    EpisodeStates,
    EpisodeStore,
    KeptQuestion,
    Question,
    QuestionVectors,
    Scope,
    Viewer,
)
from ...errors import InvalidRequest, StateError
from ...events import EpisodeRef
from ...kernels import load
from ...lora import HiddenSpace
from .checks import check_pairs, check_person, check_record
from .encoding import head_from, tokens_from
from .finishing import finish
from .index import EpisodeIndex
from .lines import line_of
from .recollection import Recalled, Recollection
from .volatile import VolatileEpisodes
from .writing import Remembered, Undone, Writing

__all__ = ["STATIC_DIM", "EpisodeMemory"]

_log = logging.getLogger("sona_stream.engine.memory")

STATIC_DIM = 256
_DAY_S = 86400.0
_UPKEEP_S = 3600.0
_PAGE = 200


class EpisodeMemory:
    """One a program; `async with` it once the store is open. Its methods belong to one event loop.

    Reading (`holds`, `recall`, `gate`, `states`) never waits. Writing is durable when it returns, unless the store
    is volatile, and finishes even when the caller is cancelled.
    """

    def __init__(
        self,
        store: EpisodeStore | None,
        settings: MemorySettings | None = None,
        *,
        storage: Storage = "features",
        storage_options: StorageSettings | None = None,
        compiled: bool = True,
    ) -> None:
        """Without a store, or at storage "none", episodes are in memory only."""
        self._settings = settings or MemorySettings()
        self._store = VolatileEpisodes() if store is None or storage == "none" else store
        self._ttl_s = (storage_options or StorageSettings()).features_ttl_days * _DAY_S
        self._compiled = compiled
        self._parts: tuple[EpisodeIndex, Recollection, Writing] | None = None
        self._upkeep: asyncio.Task[None] | None = None
        self.on_gone: Callable[[Sequence[str]], None] | None = None
        """Told of the keys of episodes that left for whatever reason."""

    async def __aenter__(self) -> EpisodeMemory:
        """Read what there is, and keep within the bounds as they are set now."""
        kernels = await asyncio.to_thread(load, compiled=self._compiled)
        index, half_life = EpisodeIndex(kernels, STATIC_DIM), self._settings.half_life_days * _DAY_S
        reading = Recollection(index, self._store, kernels, half_life, self._lost)
        writing = Writing(reading, self._store, kernels, self._settings, half_life, self._ttl_s, self._gone)
        self._parts = index, reading, writing
        await writing.load()
        self._store.on_removed = writing.left
        self._upkeep = asyncio.create_task(self._keep_up(), name="sona-memory-upkeep")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._upkeep is not None:
            self._upkeep.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._upkeep
            self._upkeep = None
        self._store.on_removed = None
        if self._parts is not None:
            await finish(self._writing.write_uses())
            self._parts = None

    @property
    def durable(self) -> bool:
        """Whether episodes outlive the process."""
        return self._store.durable

    # -- on a request's path ----------------------------------------------------------------------------------

    def holds(self, viewer: Viewer) -> bool:
        """Whether this viewer may see any episode. If not, nothing needs to be embedded for it."""
        return self._index.holds(viewer)

    def recall(self, viewer: Viewer, static: NDArray[np.float32]) -> Recalled:
        """Candidates near `static` (256,), the static vector of `question_of`'s text. Under 5 ms at 100,000."""
        return self._reading.recall(viewer, static)

    def gate(self, recalled: Recalled, question: Question, vectors: QuestionVectors) -> tuple[EpisodeRef, ...]:
        """Those of the candidates that act, best first, at most 4 and usually one or none; counts their use.

        Without ``vectors.contextual`` only questions of nearly the same words. Raises ValueError when the question
        has a system prompt and ``vectors.system`` is None.
        """
        return self._reading.gate(recalled, question, vectors)

    def states(self, key: str) -> EpisodeStates | None:
        """For `host.put_episode`. None when the episode is gone, or damaged (logged)."""
        return self._reading.states(key)

    def accepted(self, viewer: Viewer, sketch: bytes, token_ids: NDArray[np.int32]) -> list[str]:
        """Keys of the viewer's own accepted answers to the sketched question that are this very answer."""
        return self._reading.accepted(viewer, sketch, token_ids[: self._settings.max_tokens])

    # -- learning ---------------------------------------------------------------------------------------------

    async def remember(self, record: EpisodeRecord) -> Remembered:
        """Use this answer for its question from now on, for the person who gave it.

        An older answer to the same question by the same person is superseded. Raises InvalidRequest naming the
        field and its limit; StateError when it cannot be stored.
        """
        check_record(record, STATIC_DIM)
        counters, before = self._writing.counters, self._writing.counters["evicted"]
        remembered = await finish(self._writing.remember(record))
        if counters["evicted"] > before == 0:
            _log.warning(
                "the memory of episodes is full: what is worth least is forgotten, %d episodes of tenant %r now; "
                "sona.memory bounds them, and `sona-stream capacity` tells what fits",
                counters["evicted"],
                record.tenant,
            )
        return remembered

    def sketch(self, question: Question, vectors: QuestionVectors) -> bytes:
        """All that `remember` needs of a question, without its text: vectors in int8, and hashes of its words keyed
        with the state folder's secret. From any thread.
        """
        return self._reading.sketch(question, vectors)

    async def keep_questions(self, kept: Sequence[KeptQuestion]) -> None:
        """Durably, so that a correction after a restart can be remembered (`EpisodeRecord.sketch`)."""
        await self._store.keep_questions(kept)

    async def kept_question(self, tenant: str, request_id: str) -> bytes | None:
        """The sketch of what this request asked."""
        return await self._store.question(tenant, request_id)

    async def undo(self, key: str) -> Undone | None:
        """Take this one back: what it superseded is used again. None when it is gone."""
        return await finish(self._writing.undo(key))

    async def promote(self, key: str, scope: Scope, *, by: str) -> Episode:
        """Let the whole tenant, or everybody, have it; it counts as the newest there. `by`: the admin's key id.

        Raises NotFound, and InvalidRequest when that is no wider scope or a newer answer stands for this one.
        """
        return await finish(self._writing.promote(key, scope, by))

    async def forget(
        self, *, tenant: str | None = None, keys: Sequence[str] | None = None, person: str | None = None
    ) -> tuple[str, ...]:
        """Delete these with all that they superseded; or all of a person of the tenant, or all of the tenant: what
        they had superseded of others is used again. Another tenant's keys are left alone; tenant None, for an
        operator, takes keys of all. -> keys that are gone
        """
        if keys is None and tenant is None:
            raise InvalidRequest(
                "name the tenant whose episodes are to be forgotten, or their keys", param="tenant"
            )
        check_person(person)
        return await finish(self._writing.forget(tenant, keys, person))

    async def episodes(
        self,
        *,
        tenant: str | None = None,
        person: str | None = None,
        scope: Scope | None = None,
        model: str | None = None,
        feedback: str | None = None,
        limit: int = 1000,
    ) -> list[Episode]:
        """Newest first; None: whichever. `feedback`: those that this one made. `person`: `person_of` somebody;
        InvalidRequest for anything else.
        """
        check_person(person)
        return await self._store.latest(
            tenant=tenant, person=person, scope=scope, model=model, feedback=feedback, limit=limit
        )

    async def find(self, key: str) -> Episode | None:
        """None when it is gone."""
        slot = self._reading.slot(key)
        found = [] if slot is None else await self._store.find([self._index.number(slot)])
        return found[0] if found else None

    async def export(self, *, tenant: str | None = None, after: int = 0) -> AsyncGenerator[bytes, None]:
        """JSON lines by number, those above `after`: text where it is kept, else token ids and vectors."""
        while page := await self._store.entries(after=after, limit=_PAGE):
            after = page[-1].number
            wanted = [entry.number for entry in page if tenant in (None, entry.tenant)]
            for episode in await self._store.find(wanted):
                line = self._line(episode)
                if line is not None:
                    yield line

    def _line(self, episode: Episode) -> bytes | None:
        slot = self._reading.slot(episode.key)
        if slot is None:
            return None
        place = self._index.place(slot)
        head, body = self._store.head(place), self._store.body(place)
        if head is None or body is None:
            return None
        return line_of(episode, head_from(head), self._index.codes(slot), tokens_from(body))

    # -- another model ----------------------------------------------------------------------------------------

    async def stale(
        self, model: str, fingerprint: str, *, below: int | None = None, limit: int = 1000
    ) -> list[Episode]:
        """Those of this model that were made for another fingerprint and are not used, the highest number first;
        `below`: of lower numbers only.

        `Episode.renewable` ones can be made anew: encode, then `renew`. The others wait until they expire.
        """
        return await self._store.stale(model, fingerprint, below=below, limit=limit)

    async def renew(
        self,
        key: str,
        *,
        fingerprint: str,
        hidden: NDArray[np.float32],
        token_ids: NDArray[np.int32],
        space: HiddenSpace,
    ) -> Episode:
        """The same episode with states (T, d) and tokens (T,) of another model. It has another key afterwards.

        Raises NotFound, or InvalidRequest as `remember` does.
        """
        check_pairs(hidden, token_ids, space)
        return await finish(self._writing.renew(key, fingerprint, hidden, token_ids, space))

    # -- upkeep -----------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Write how often episodes were used, let go of what has expired, give disk space back. Runs hourly."""
        await finish(self._writing.settle())

    def counters(self) -> dict[str, int]:
        """For metrics: costs nothing."""
        own = {
            "episodes": len(self._index),
            "bytes": self._index.total_bytes(),
            "index_bytes": self._index.nbytes,
            "expired": self._store.expired,
        }
        return own | dict(self._reading.counters) | dict(self._writing.counters)

    def budgets(self) -> list[Budget]:
        """All episodes' states: on disk, or in memory where they are volatile."""
        setting = "mb" if self.durable else "volatile_mb"
        limit = getattr(self._settings, setting) << 20
        gone = self._writing.counters["evicted"]
        held = self._index.total_bytes()
        return [Budget("episodes", f"sona.memory.{setting}", len(self._index), held, limit, gone)]

    # -- inside -----------------------------------------------------------------------------------------------

    def _lost(self, number: int) -> None:
        self._writing.left(Dropped([number], []))

    def _gone(self, keys: Sequence[str]) -> None:
        if keys and self.on_gone is not None:
            self.on_gone(keys)

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(_UPKEEP_S)
            try:
                await self._writing.settle()
            except StateError as error:
                _log.error("the memory's upkeep has to wait: %s", error)

    @property
    def _index(self) -> EpisodeIndex:
        return self._open()[0]

    @property
    def _reading(self) -> Recollection:
        return self._open()[1]

    @property
    def _writing(self) -> Writing:
        return self._open()[2]

    def _open(self) -> tuple[EpisodeIndex, Recollection, Writing]:
        if self._parts is None:
            raise StateError("the memory of episodes is not open")
        return self._parts
