"""Which answers tell of which adapter keys: the watch and the validity of every key that is used."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from zipfile import BadZipFile

import anyio

from ...config.settings import LearningSettings
from ...events import AdapterRef, Feedback, Request, Trajectory
from ...protocols import Store
from .keys import EVERYTHING, AdapterKey, is_pattern
from .validity import Validity
from .watch import Watch

__all__ = ["FORM", "Watches", "in_share"]

_log = logging.getLogger(__name__)

FORM = "form"
"""The scorer whose part says whether a constrained answer's form is right."""
_CORRECTED = 0.0
"""What a correction says about the answer it replaces."""
_KEPT = 1024
_SAVE_EVERY = 32


def in_share(request: Request, salt: str, share: float) -> bool:
    """Whether this request is in the share: the same for all of one end user's, else drawn by the request."""
    who = request.principal.user or request.id
    digest = hashlib.blake2b(f"{salt}\n{who}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2.0**64


class Watches:
    """At most `_KEPT` keys in memory, the ones longest without an answer leave first. Belongs to one event loop."""

    def __init__(self, settings: LearningSettings, store: Store, served: Callable[[AdapterKey], int]) -> None:
        """``served``: the version that a key serves now, 0: none."""
        self._settings, self._store, self._served = settings, store, served
        self._watches: OrderedDict[AdapterKey, Watch] = OrderedDict()
        self._validity: OrderedDict[AdapterKey, Validity] = OrderedDict()
        self.due: dict[AdapterKey, None] = {}
        """Keys with a verdict to act on."""
        self.wake = anyio.Event()

    def of(self, key: AdapterKey) -> Watch:
        """The key's; what was served before anybody watched is what newer versions are measured by."""
        watch = self._watches.get(key)
        if watch is None:
            watch = self._watches[key] = Watch(self._settings.canary)
            watch.begin_anew(self._served(key))
        self._watches.move_to_end(key)
        return watch

    def validity(self, key: AdapterKey) -> Validity:
        """The key's."""
        found = self._validity.setdefault(key, Validity(self._settings.validity))
        self._validity.move_to_end(key)
        return found

    def answered(self, keys: Sequence[AdapterKey], trajectory: Trajectory) -> None:
        """A complete answer to a request of this key chain."""
        if FORM in trajectory.score.parts:
            used = [key for key in keys if key.group == EVERYTHING or self._served(key)]
            self._formed(used[-1], trajectory)
            return
        for key, version in self._concerned(keys, trajectory.adapter):
            self.of(key).answered(version, trajectory)
            self._look(key)

    def rated(self, keys: Sequence[AdapterKey], trajectory: Trajectory, feedback: Feedback) -> None:
        """What somebody said of an answer; automatic scores came with the answer itself."""
        if feedback.kind == "score":
            return
        quality = _CORRECTED if feedback.quality is None else feedback.quality
        for key, version in self._concerned(keys, trajectory.adapter):
            self.of(key).rated(version, quality)
            self._look(key)
        for key in keys:
            if key in self._watches:
                self._watches[key].taught(feedback.id)

    def _concerned(
        self, keys: Sequence[AdapterKey], adapter: AdapterRef | None
    ) -> Iterator[tuple[AdapterKey, int]]:
        """The keys that an answer says something of, and the version of each that gave it. Without a key (0) it is
        what a coarser one or the bare model gave; a finer one's answer says nothing of a coarser. There may be
        thousands of patterns: one is watched once it serves.
        """
        if adapter is not None and adapter.key not in map(str, keys):
            return
        for key in reversed(keys):
            given = adapter is not None and adapter.key == str(key)
            if given or not is_pattern(key.group) or self._served(key):
                yield key, adapter.version if given and adapter is not None else 0
            if given:
                return

    def _formed(self, key: AdapterKey, trajectory: Trajectory) -> None:
        adapted = trajectory.adapter is not None and trajectory.adapter.key == str(key)
        if adapted or trajectory.adapter is None:
            validity = self.validity(key)
            if validity.observe(trajectory.score.parts[FORM], adapted=adapted):
                _log.info("adapter %s: constrained answers: %s", key, validity.state)
                self._demand(key)
            elif validity.changes >= _SAVE_EVERY:
                self._demand(key)

    def _look(self, key: AdapterKey) -> None:
        watch = self._watches[key]
        if watch.changes >= _SAVE_EVERY or watch.finding() is not None or self._promotes(watch):
            self._demand(key)

    def _promotes(self, watch: Watch) -> bool:
        return self._settings.canary.share < 1.0 and watch.accepted

    def _demand(self, key: AdapterKey) -> None:
        self.due[key] = None
        self.wake.set()

    # ---- what is kept

    async def load(self, key: AdapterKey) -> None:
        """Know again what was kept. A damaged blob counts as none."""
        for table, kind, read in (
            (self._watches, "watch", lambda data: Watch.from_bytes(data, self._settings.canary)),
            (self._validity, "validity", lambda data: Validity.from_bytes(data, self._settings.validity)),
        ):
            data = await self._store.get_blob(_blob(kind, key))
            if data is not None and key not in table:
                try:
                    table[key] = read(data)  # type: ignore[assignment]
                except (ValueError, EOFError, BadZipFile) as error:
                    _log.warning("adapter %s: what was watched cannot be read: %s", key, error)

    async def save(self, key: AdapterKey) -> None:
        """What is new of this key."""
        for table, kind in ((self._watches, "watch"), (self._validity, "validity")):
            one = table.get(key)
            if one is not None and one.changes:
                one.changes = 0
                await self._store.put_blob(_blob(kind, key), one.to_bytes())
            while len(table) > _KEPT:
                table.popitem(last=False)

    async def renew(self, key: AdapterKey) -> None:
        """The key serves something else now: constrained answers of before say nothing of it."""
        validity = Validity(self._settings.validity)
        validity.changes = 1
        self._validity[key] = validity
        await self.save(key)

    async def save_all(self) -> None:
        """Everything that is new, at the end. What cannot be kept is evidence lost, nothing else."""
        try:
            for key in {**self._watches, **self._validity}:
                await self.save(key)
        except Exception:
            _log.exception("what was watched could not be kept")

    def view(self) -> dict[str, Any]:
        """Key -> what is known of the versions on trial, and of constrained answers."""
        shown: dict[str, Any] = {str(key): watch.view() for key, watch in self._watches.items() if watch.seen}
        for key, validity in self._validity.items():
            shown.setdefault(str(key), {})["constrained"] = validity.view()
        return shown


def _blob(kind: str, key: AdapterKey) -> str:
    return f"learner/{kind}/{key}"
