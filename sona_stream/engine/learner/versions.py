"""The versions of every adapter: which are served, how a new one comes, how an old one comes back.

A version is immutable. The store learns of it first, then the host serves it, then it is marked as current: a
crash between any two leaves the previous one current.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import AsyncIterator, Mapping, Sequence

from ...config.settings import CanarySettings
from ...errors import HostAway, NotFound, SonaError
from ...events import AdapterRef, Request
from ...lora import AdapterRecord, LoraWeights
from ...protocols import Store, Writes
from .keys import EVERYTHING, AdapterKey
from .line import Line, Status
from .optimiser import Moments
from .pins import Pins
from .shelf import Shelf, listed
from .trials import Trials
from .turns import TakingTurns
from .watches import Watches

__all__ = ["GoingBack", "Line", "Versions"]

_log = logging.getLogger(__name__)
_FROZEN = "learner/frozen"


@dataclasses.dataclass(frozen=True, slots=True)
class GoingBack:
    """What the versions that are undone were made of, as far as they are kept; the newest of them; and the writes
    that will make it durable.
    """

    lessons: list[str]
    newest: int
    writes: Writes


class Versions:
    """Publishing, restoring, rolling back and pinning, over all hosts."""

    def __init__(
        self,
        hosts: Mapping[str, TakingTurns],
        store: Store,
        *,
        keep: int,
        older: int,
        serve_new: bool,
        watches: Watches,
        canary: CanarySettings,
        max_bytes: int,
    ) -> None:
        """``keep`` newest versions and ``older`` ones in the store. ``max_bytes``: of all weights in memory."""
        self._hosts, self._store = hosts, store
        self._keep, self._older, self._serve_new = keep, older, serve_new
        self._watches, self._canary = watches, canary
        self._lines: dict[AdapterKey, Line] = {}
        self.shelf = Shelf(store, max_bytes, self._give_up, watches.ready)
        watches.tie(self.has, lambda key: self.shelf.in_use(key.at(EVERYTHING)), self._made_for)
        self.pins = Pins(hosts, self._kept)
        self.trials = Trials(hosts, self.pins, canary.share)
        self.frozen = False
        self._problems: dict[AdapterKey, str] = {}

    def line(self, key: AdapterKey) -> Line:
        """The key's line; a new one when there is none."""
        return self._lines.setdefault(key, Line(key))

    def has(self, key: AdapterKey) -> bool:
        """Whether the key has, or had, any version for the present model."""
        line = self._lines.get(key)
        return line is not None and line.latest > line.foreign

    def lines(self, model: str | None = None) -> list[Line]:
        """All that are known, or those of one model."""
        return [line for line in self._lines.values() if model in (None, line.key.model)]

    @property
    def problems(self) -> list[str]:
        """What could not be served, and why."""
        return list(self._problems.values())

    def served(self, key: AdapterKey) -> AdapterRef | None:
        """What requests get under this key now."""
        line = self._lines.get(key)
        if line is None or line.served is None:
            return None
        return AdapterRef(key=str(key), version=line.served.version)

    def chosen(self, key: AdapterKey, request: Request) -> AdapterRef | None:
        """What this request gets under this key: the canary for its share, else what is served."""
        line = self._lines.get(key)
        if line is None:
            return None
        return self.trials.drawn(line, request) or self.served(key)

    def canaries(self) -> dict[str, int]:
        """Key -> version that only a share of the requests gets."""
        return {str(line.key): line.candidate.version for line in self.lines() if line.candidate is not None}

    async def thawed(self) -> None:
        """Know again whether publishing is frozen."""
        self.frozen = await self._store.get_blob(_FROZEN) == b"1"

    async def restore(self, model: str) -> None:
        """Puts every current version of this model on its host, which is new to us. One made for another model is
        never served; it is reported.
        """
        for line in self.lines(model):
            self.shelf.forget(line)
            line.epoch += 1
            self._problems.pop(line.key, None)
        self.pins.forget(model)
        current = await self._store.current_versions()
        newest, observed = dict[str, AdapterRecord](), dict[str, AdapterRecord]()
        records: dict[tuple[str, int], AdapterRecord] = {}
        sizes: dict[tuple[str, int], int] = {}
        for record, size in await listed(self._store):
            newest[record.key], records[record.key, record.version] = record, record
            sizes[record.key, record.version] = size
            observed |= {record.key: record} if record.status == "observed" else {}
        own = [(self.line(at), one) for one in newest.values() if (at := AdapterKey.parse(one.key)).model == model]
        for line, last in own:
            line.latest, line.foreign = last.version, 0 if self._fits(last) else last.version
            served = records.get((last.key, current.get(last.key, 0)))
            if served is not None and self._is_ours(line, served):
                line.served = line.working = served
            seen = None if self._serve_new else observed.get(last.key)
            if seen is not None and self._fits(seen) and (served is None or served.version < seen.version):
                line.working = seen
        await self._put_back(model, sizes)
        for line, last in own:
            servable = self._serve_new and self._fits(last) and line.key not in self._problems
            newer = line.served is None or line.served.version < last.version
            if servable and last.status == "canary" and newer:
                if self._canary.share == 1.0:
                    line.working = last  # no trials any more: the next version begins here, and is everybody's
                    continue
                line.candidate = last
                async with self.shelf.using(line, learning=False):
                    canary, line.candidate = line.candidate, None
                    if canary is not None:
                        await self.trials.begin(line, canary)
                        line.working = canary

    async def _put_back(self, model: str, sizes: Mapping[tuple[str, int], int]) -> None:
        """All that is served, or on a host that can be asked what it holds, the newest that fit in memory."""
        host, room = self._hosts[model], self.shelf.max_bytes
        first: list[Line] = []
        found = [(record.created_at, line) for line in self.lines(model) if (record := line.served) is not None]
        for _, line in sorted(found, key=lambda one: -one[0]):
            assert line.served is not None
            room -= sizes[line.served.key, line.served.version]
            if room < 0 and first and host.bounded:
                break
            first.append(line)
        for line in reversed(first):
            try:
                await self.bring(line, anew=True)
            except HostAway:
                raise
            except SonaError as error:
                self._give_up(line, str(error))
                self.shelf.forget(line)

    def _give_up(self, line: Line, reason: str) -> None:
        """Requests get what the next coarser level serves."""
        self._problems[line.key] = f"adapter {line.key} is not served: {reason}"
        _log.warning("%s", self._problems[line.key])

    async def bring(self, line: Line, *, anew: bool = False) -> None:
        """Put what the line serves on its host, unless (not `anew`) it is there. Raises HostError."""
        host, name = self._hosts[line.key.model], str(line.key)
        async with line.serving:
            if line.served is not None and (anew or not host.holds_adapter(name)):
                async with self.shelf.using(line, learning=False):
                    if (record := line.served) is not None:
                        await host.put_adapter(name, record.version, record.weights)

    def _is_ours(self, line: Line, record: AdapterRecord) -> bool:
        if self._fits(record):
            return True
        self._problems[line.key] = (
            f"adapter {record.key}@{record.version} was made for {record.fingerprint}, "
            f"but the model is {self._hosts[line.key.model].fingerprint}: it is not served"
        )
        _log.warning("%s", self._problems[line.key])
        return False

    def _made_for(self, key: AdapterKey) -> tuple[str, int]:
        """The present model's fingerprint, "" while there is none, and up to which version they are another's."""
        host, line = self._hosts.get(key.model), self._lines.get(key)
        return "" if host is None else host.fingerprint, 0 if line is None else line.foreign

    def _fits(self, record: AdapterRecord) -> bool:
        return record.fingerprint == self._hosts[AdapterKey.parse(record.key).model].fingerprint

    def next(
        self,
        line: Line,
        weights: LoraWeights,
        moments: Moments,
        *,
        reason: str,
        metrics: Mapping[str, float],
        feedback_ids: Sequence[str],
    ) -> AdapterRecord:
        """The next version of a line whose lock the caller holds until it is published."""
        host = self._hosts[line.key.model]
        return line.next(weights, moments, host.fingerprint, self._status(line), reason, metrics, feedback_ids)

    async def publish(self, line: Line, record: AdapterRecord) -> AdapterRecord:
        """What `next` gave, durable and served. Raises HostError when the host refuses it."""
        writes = self._store.together()
        writes.put_adapter(record)
        await writes.commit()
        await self.serve(line, record, writes)
        await writes.commit()
        return record

    def _status(self, line: Line) -> Status:
        """What becomes of a line's next version. One that comes while another is on trial takes its place."""
        if not self._serve_new:
            return "observed"
        watch = self._watches.of(line.key)
        coarsest = line.key.group == EVERYTHING  # a finer level begins as its parent's fit
        used = watch.lifetime >= self._canary.least_answers and (line.served is not None or coarsest)
        if self._canary.share < 1.0 and (used or line.candidate is not None):
            return "canary"
        if line.served is not None and watch.accepted:
            watch.advance(line.served.version)
        return "published"

    async def serve(self, line: Line, record: AdapterRecord, writes: Writes) -> None:
        """What `next` gave and is durable. Once `writes` are, so is that it serves. Raises HostError."""
        line.latest = record.version
        if record.status == "canary":
            await self.trials.begin(line, record)
        elif self._serve_new:
            await self._serve_all(line, record, writes)
            await self.trials.end(line)
        line.working = record
        trusted = self._watches.of(line.key).reference
        writes.prune_adapters(record.key, keep=self._keep, older=self._older, besides=trusted)

    async def _serve_all(self, line: Line, record: AdapterRecord, writes: Writes) -> None:
        async with line.serving:
            await self._hosts[line.key.model].put_adapter(record.key, record.version, record.weights)
            line.served = record
        writes.set_current(record.key, record.version, reason=record.reason)

    async def promote(self, line: Line) -> bool:
        """The canary serves everybody, and newer versions are measured by it. False: there is none that is newer
        than what is served, or publishing is frozen.
        """
        async with self.shelf.using(line), line.lock:
            served = 0 if line.served is None else line.served.version
            if line.candidate is None or line.candidate.version < served or self.frozen:
                return False
            record = dataclasses.replace(line.candidate, status="published")
            writes = self._store.together()
            writes.put_adapter(record)
            await self._serve_all(line, record, writes)
            await writes.commit()
            line.working = record
            self._watches.of(line.key).advance(record.version)
            await self.trials.end(line)
            return True

    async def finish(self, line: Line, record: AdapterRecord, writes: Writes) -> None:
        """Serve a version whose publishing was interrupted: the newest, kept, and never served."""
        served, tried = (0 if one is None else one.version for one in (line.served, line.candidate))
        unserved = record.status in ("published", "canary") and record.version == line.latest > max(served, tried)
        if unserved and self._serve_new and not self.frozen and self._fits(record):
            await self.serve(line, record, writes)
        elif record.version == served:
            writes.set_current(record.key, served, reason=record.reason)

    @contextlib.asynccontextmanager
    async def going_back(
        self, key: AdapterKey, version: int, *, reason: str, taught: float = math.inf
    ) -> AsyncIterator[GoingBack]:
        """Serve `version` again, bit for bit; 0 is the base model. It is served before the block, and with what the
        block adds to the writes durable after it, all at once. Later ones that were made since `taught`
        (``time.time()``) may hold a lesson that was taken back: nobody gets them ever again.

        It may also be one that was only observed, or was itself rolled back earlier. Raises NotFound when it is not
        kept (any more), was made for another model or holds what was taken back. After any error asking again does
        the rest.
        """
        line = self.line(key)
        async with line.lock:
            record = None if version == 0 else await self._kept(key, version)
            undone = [one for one in await self._store.adapters(str(key)) if one.version > version]
            writes = self._store.together()
            async with line.serving:
                if record is None:
                    await self._hosts[key.model].drop_adapter(str(key))
                else:
                    record = dataclasses.replace(record, status="published")
                    await self._hosts[key.model].put_adapter(str(key), version, record.weights)
                    writes.put_adapter(record)
                line.served = line.working = record
            line.fit = None
            line.epoch += 1
            self.shelf.note(line)
            await self.trials.end(line)
            await self._leave(undone, taught, writes)
            writes.set_current(str(key), version, reason=reason)
            lessons = [feedback_id for later in undone for feedback_id in later.feedback_ids]
            yield GoingBack(lessons, line.latest, writes)
            await writes.commit()

    async def withdraw(self, key: AdapterKey, version: int, taught: float) -> None:
        """As `going_back` does, of versions after this one that are not served now. Durable when it returns."""
        line, writes = self.line(key), self._store.together()
        async with line.lock:
            later = [one for one in await self._store.adapters(str(key)) if one.version > version]
            await self._leave([one for one in later if one.created_at >= taught], taught, writes)
            await writes.commit()

    async def _leave(self, undone: Sequence[AdapterRecord], taught: float, writes: Writes) -> None:
        for one in undone:
            withdrawn = one.status == "withdrawn" or one.created_at >= taught
            writes.put_adapter(dataclasses.replace(one, status="withdrawn" if withdrawn else "rolled_back"))
            if withdrawn:
                await self.pins.release(one)

    async def _kept(self, key: AdapterKey, version: int) -> AdapterRecord:
        record = await self._store.adapter(str(key), version) if key.model in self._hosts else None
        if record is None:
            raise NotFound(f"adapter {key}@{version} is not kept")
        if not self._fits(record):
            raise NotFound(f"adapter {key}@{version} was made for another model ({record.fingerprint})")
        if record.status == "withdrawn":
            raise NotFound(f"adapter {key}@{version} is served no more: a lesson that may be in it was taken back")
        return record

    async def set_frozen(self, frozen: bool) -> None:
        """Stops or resumes publishing; survives a restart."""
        self.frozen = frozen
        await self._store.put_blob(_FROZEN, b"1" if frozen else b"0")
