"""The default `Store`: SQLite for rows, safetensors beside it, one writing thread, nothing on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from sqlite3 import Connection

from ..config.settings import SonaSettings
from ..errors import StateError
from ..events import Feedback, FeedbackOutcome, Trajectory
from ..lora import AdapterRecord, Capture
from ..storing import CaptureHead
from . import adapters, blobs, captures, clock, retention, trajectories
from . import feedback as judgements
from .episode_store import SqliteEpisodes
from .forgetting import erase, lower
from .pending import Entry, Pending
from .privacy import Redaction
from .report import stats_of
from .schema import MIGRATIONS, Migration
from .session import Session
from .together import SqliteWrites

__all__ = ["SqliteStore"]

_log = logging.getLogger("sona_stream.store")

_EXPIRE_EVERY_S = 3600.0
_DAY_S = 86400.0
_WAITING_CORRECTIONS = 1024


class SqliteStore:
    """See `protocols.Store` for the contract, `privacy` for what each `sona.storage` keeps.

    Any task may call any method while the block is entered; before and after, methods raise StateError, except
    `submit_trajectory`, which never raises.
    """

    def __init__(
        self,
        settings: SonaSettings,
        *,
        directory: Path,
        queue_capacity: int = 8192,
        queue_bytes: int = 64 << 20,
        migrations: Sequence[Migration] = MIGRATIONS,
    ) -> None:
        self.directory = directory
        self._settings = settings
        self._migrations = migrations
        self._redaction = Redaction(settings.storage)
        self._pending = Pending(capacity=queue_capacity, max_bytes=queue_bytes)
        self._said: dict[str, Feedback] = {}
        """Corrections that wait for their outcome while storage "none" keeps their text off the disk."""
        self.episode_store = SqliteEpisodes(self._open, settings.storage)
        """Episodes of answers; what is there leaves by `forget` and `expire`, too."""
        self._refused = 0
        self._session: Session | None = None
        self._janitor: asyncio.Task[None] | None = None

    # -- lifetime ---------------------------------------------------------------------------------------------

    async def __aenter__(self) -> SqliteStore:
        if self._session is not None:
            raise StateError(f"the store of {self.directory} is open already")
        self._session = await Session.open(self.directory, self._migrations, self._pending, self._insert)
        try:
            await self._tidy()
        except BaseException:
            await self.__aexit__()
            raise
        self._janitor = asyncio.create_task(self._expire_hourly(), name="sona-store-janitor")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._janitor is not None:
            self._janitor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._janitor
            self._janitor = None
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # -- trajectories -----------------------------------------------------------------------------------------

    def submit_trajectory(self, trajectory: Trajectory) -> None:
        """Queue; visible at once, durable within a second. Never blocks or raises; drops are counted."""
        session = self._session
        if session is None:
            self._pending.drops += 1
            return
        kept = self._redaction.trajectory(trajectory)
        entry = Entry(kept, self._redaction.names(trajectory), time.time())
        if self._pending.add(entry):
            session.writer.wake()

    async def trajectory(self, request_id: str, *, tenant: str | None = None) -> Trajectory | None:
        """What `submit_trajectory` took, as far as storage keeps it."""
        if tenant is None:
            waiting = next((e for e in reversed(self._pending.snapshot()) if e.key[1] == request_id), None)
            found = None if waiting is None else waiting.trajectory
        else:
            found = self._pending.get(tenant, request_id)
        return found or await self._open().read(lambda c: trajectories.find(c, request_id, tenant))

    async def trajectories(self, *, limit: int, after: float = 0.0) -> list[Trajectory]:
        """The newest `limit` with started_at > after, oldest first."""
        waiting = {e.key: e.trajectory for e in self._pending.snapshot() if e.trajectory.started_at > after}
        stored = await self._open().read(lambda c: trajectories.newest(c, limit, after))
        merged = {(one.tenant, one.request_id): one for one in reversed(stored)} | waiting
        return sorted(merged.values(), key=lambda one: one.started_at)[-limit:] if limit > 0 else []

    async def find_requests(self, any_id: str, *, tenant: str) -> list[str]:
        """Request ids that this id names: our own, the completion's ``id``, or one the client sent."""
        name = self._redaction.name(any_id)
        waiting = [
            entry.trajectory.request_id
            for entry in self._pending.snapshot()
            if entry.trajectory.tenant == tenant and (entry.trajectory.request_id == any_id or name in entry.names)
        ]
        stored = await self._open().read(lambda c: trajectories.named(c, any_id, name, tenant))
        return list(dict.fromkeys((*stored, *waiting)))

    # -- feedback ---------------------------------------------------------------------------------------------

    async def commit_feedback(self, feedback: Feedback) -> Feedback:
        """Durable when it returns; a retry with the same idempotency key returns the first feedback.

        At storage "none" a correction's text is kept in memory only, until its outcome is recorded.
        """
        kept, secret = self._redaction.feedback(feedback), self._open().secret
        first = await self._open().write(lambda c: judgements.commit(c, feedback, kept, secret))
        if first is not None:
            return self._said.get(first.id, first)
        if kept.correction != feedback.correction:
            self._said[feedback.id] = feedback
            while len(self._said) > _WAITING_CORRECTIONS:
                del self._said[next(iter(self._said))]
        return feedback

    async def pending_feedback(self) -> list[Feedback]:
        """Committed, but without an outcome, oldest first."""
        stored = await self._open().read(judgements.pending)
        return [self._said.get(one.id, one) for one in stored]

    async def record_outcome(self, outcome: FeedbackOutcome) -> None:
        """Durable when it returns. Unless storage is "text", a correction's text leaves the disk here."""
        writes = self._writes()
        writes.record_outcome(outcome)
        await writes.commit()

    async def outcome(self, feedback_id: str) -> FeedbackOutcome | None:
        """What was recorded last; None while it is queued."""
        return await self._open().read(lambda c: judgements.outcome(c, feedback_id))

    async def feedback(
        self, *, tenant: str | None = None, person: str | None = None, limit: int = 1000
    ) -> list[Feedback]:
        return await self._open().read(lambda c: judgements.latest(c, tenant, limit, person))

    # -- captures and adapters --------------------------------------------------------------------------------

    async def put_capture(self, key: str, capture: Capture, advantage: float, *, feedback_id: str) -> None:
        """Keep a judged answer for replay: the newest `sona.learner.replay_capacity` a key."""
        writes = self._writes()
        writes.put_capture(key, capture, advantage, feedback_id=feedback_id)
        await writes.commit()

    async def captures(self, key: str, *, limit: int) -> list[tuple[Capture, float, str]]:
        """(capture, quality signal, feedback_id), newest `limit`, oldest first; damaged files are left out."""
        files = self._open().files
        return await self._open().read(lambda c: captures.newest(c, files, key, limit))

    async def newest_captures(
        self, keys: Collection[str], wanted: Callable[[CaptureHead], bool], *, limit: int
    ) -> list[tuple[CaptureHead, Capture, float]]:
        files = self._open().files
        return await self._open().read(lambda c: captures.newest_of(c, files, keys, wanted, limit))

    async def put_adapter(self, record: AdapterRecord) -> None:
        """Durable when it returns: the file first, then the row. The same version again replaces its row."""
        writes = self._writes()
        writes.put_adapter(record)
        await writes.commit()

    async def adapter(self, key: str, version: int) -> AdapterRecord | None:
        """None when there is no such version or its file is damaged (logged)."""
        files = self._open().files
        return await self._open().read(lambda c: adapters.one_record(c, files, key, version))

    async def adapters(self, key: str | None = None) -> list[AdapterRecord]:
        """Weights loaded, newest version last; damaged ones are left out (logged)."""
        files = self._open().files
        return await self._open().read(lambda c: adapters.all_records(c, files, key))

    async def adapter_heads(
        self, *, tenant: str | None = None, described: bool = False
    ) -> list[tuple[AdapterRecord, int]]:
        """(version without weights, bytes of its file), by key, the newest last. ``tenant``: with its end users;
        ``described``: with metrics and feedback ids.
        """
        return await self._open().read(lambda c: adapters.heads(c, tenant=tenant, described=described))

    async def current_versions(self) -> dict[str, int]:
        """Adapter key -> version to serve; a damaged version gives way to an intact one before it (logged)."""
        files = self._open().files
        return await self._open().read(lambda c: adapters.current(c, files))

    async def set_current(self, key: str, version: int, *, reason: str) -> None:
        """Raises StateError for a version that is not there; 0 is the base model."""
        writes = self._writes()
        writes.set_current(key, version, reason=reason)
        await writes.commit()

    async def prune_adapters(self, key: str, *, keep: int, older: int = 0, besides: int = 0) -> None:
        """Keep the newest `keep` versions, `older` ones from before them, the served one, and `besides`."""
        writes = self._writes()
        writes.prune_adapters(key, keep=keep, older=older, besides=besides)
        await writes.commit()

    def together(self) -> SqliteWrites:
        """For writes that need each other. Tensors are on their way to the disk before `commit`."""
        return self._writes(ahead=True)

    # -- blobs ------------------------------------------------------------------------------------------------

    async def put_blob(self, name: str, data: bytes) -> None:
        """Durable when it returns. The caller answers for what is in it: storage levels do not look inside."""
        writes = self._writes()
        writes.put_blob(name, data)
        await writes.commit()

    async def get_blob(self, name: str) -> bytes | None:
        """None when there is none, or it is damaged (logged)."""
        return await self._open().read(lambda c: blobs.get(c, name))

    async def blob_names(self, prefix: str) -> list[str]:
        return await self._open().read(lambda c: blobs.names(c, prefix))

    # -- beyond the contract ----------------------------------------------------------------------------------

    async def forget(self, *, tenant: str, user: str | None = None) -> dict[str, int]:
        """Delete everything of an end user, or of a tenant with its adapters and the blobs named
        ``.../tenant/group``; returns rows removed by kind.

        Adapters learned from the person's feedback alone go; those learned from others', too, stay. The automatic
        copies that migrations made are deleted; copies made with `maintenance.backup` are the operator's.
        """
        session = self._open()
        self._said = {
            one.id: one
            for one in self._said.values()
            if one.tenant != tenant or (user is not None and one.user != user)
        }
        removed = await erase(session, tenant=tenant, user=user, directory=self.directory)
        self.episode_store.announce(removed.episodes)
        return removed.rows

    async def expire(self, *, now: float | None = None) -> dict[str, int]:
        """Delete what is older than `sona.storage_options` says. Runs at open and every hour by itself: then it
        does not believe a clock that has just leapt (`clock`).
        """
        session, options = self._open(), self._settings.storage_options
        moment = time.time() if now is None else now
        features = moment - options.features_ttl_days * _DAY_S
        text = moment - options.text_ttl_days * _DAY_S if self._settings.storage == "text" else features
        limit = moment - max(features, text)
        if now is None and not await session.write(lambda c: clock.believed(c, moment, limit)):
            return {}
        total: dict[str, int] = {}
        while True:
            removed = await session.remove(
                lambda c: retention.expire(c, features_before=features, text_before=text)
            )
            self.episode_store.expired += len(removed.episodes.numbers)
            self.episode_store.announce(removed.episodes)
            total = {name: total.get(name, 0) + count for name, count in removed.rows.items()}
            if not removed.more:
                break
        if total.get("episodes"):
            _log.info(
                "%d remembered answers expired after %g days (sona.storage_options.features_ttl_days)",
                total["episodes"],
                options.features_ttl_days,
            )
        total["backups"] = await asyncio.to_thread(
            retention.remove_backups, self.directory, before=max(features, text)
        )
        return total

    async def stats(self) -> dict[str, object]:
        """Rows by table, bytes on disk, queue length, drops, errors, the last error."""
        stored = await self._open().read(lambda c: stats_of(c, self.directory))
        return {**stored, **self.counters()}

    def counters(self) -> dict[str, object]:
        """The part of `stats` that costs nothing, for metrics."""
        writer = None if self._session is None else self._session.writer
        return {
            "queue_length": len(self._pending),
            "trajectories_dropped": self._pending.drops + self._refused,
            "commits": 0 if writer is None else writer.commits,
            "write_errors": 0 if writer is None else writer.errors,
            "last_error": None if writer is None else writer.last_error,
        }

    # -- inside -----------------------------------------------------------------------------------------------

    def _open(self) -> Session:
        if self._session is None:
            raise StateError(f"the store of {self.directory} is not open")
        return self._session

    def _writes(self, *, ahead: bool = False) -> SqliteWrites:
        return SqliteWrites(
            self._open(), self._settings, lambda feedback_id: self._said.pop(feedback_id, None), ahead=ahead
        )

    def _insert(self, connection: Connection, entries: list[Entry]) -> None:
        self._refused += trajectories.insert(connection, entries)

    async def _tidy(self) -> None:
        """At open: what this level of storage does not keep goes, and what is too old."""
        await lower(self._open(), self._settings.storage, directory=self.directory)
        if self._settings.storage == "none":
            await self._settle_lost_corrections()
        await self.expire()

    async def _settle_lost_corrections(self) -> None:
        """Corrections whose text went with the process that took them can't be learned any more: say so."""
        for one in await self._open().read(judgements.pending):
            if one.kind == "correction":
                reason = "the correction's text was kept in memory only (sona.storage: none) and is gone"
                await self.record_outcome(FeedbackOutcome(feedback_id=one.id, status="skipped", reason=reason))

    async def _expire_hourly(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRE_EVERY_S)
            try:
                await self.expire()
            except StateError as error:
                _log.error("what has expired could not be removed: %s", error)
