"""Which answers tell of which adapter keys: the watch and the validity of every key that is used."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import anyio

from ...budgets import Budget
from ...config.settings import LearningSettings
from ...events import AdapterRef, Feedback, Request, Trajectory
from ...protocols import Store, Writes
from .keys import EVERYTHING, AdapterKey, is_pattern
from .known import Known
from .validity import Validity
from .watch import Watch

__all__ = ["FORM", "MOST", "Watches", "in_share"]

_log = logging.getLogger(__name__)

FORM = "form"
"""The scorer whose part says whether a constrained answer's form is right."""
_CORRECTED = 0.0
"""What a correction says about the answer it replaces."""
MOST = 640
"""Keys in memory; of each others that have no version yet, half as many."""
_SAVE_EVERY = 32
"""Values. What was seen since is lost with the process."""
_SIZE = 92_000
"""Bytes of a watch that has seen every measure on both sides; one of a key without versions has a third."""


def in_share(request: Request, salt: str, share: float) -> bool:
    """Whether this request is in the share: the same for all of one end user's, else drawn by the request."""
    who = request.principal.user or request.id
    digest = hashlib.blake2b(f"{salt}\n{who}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2.0**64


class _Unread(Validity):
    """Of a key whose answers were watched, while what is known of them comes from the store."""

    @property
    def share(self) -> float:
        return 0.0

    def reason(self) -> str:
        return "constrained: what is known of the adapter's answers is being read"


class Watches:
    """Of all keys. Belongs to one event loop."""

    def __init__(self, settings: LearningSettings, store: Store, served: Callable[[AdapterKey], int]) -> None:
        """``served``: the version that a key serves now, 0: none. `tie` it before use."""
        self._settings, self._served = settings, served
        self._unread = _Unread(settings.validity)
        self._watches: Known[Watch] = Known(
            "watch",
            store,
            most=MOST,
            new=self._begun,
            read=lambda held: Watch.from_arrays(held, settings.canary),
            wanted=self._demand,
        )
        self._validity: Known[Validity] = Known(
            "validity",
            store,
            most=MOST,
            new=lambda _: Validity(settings.validity),
            read=lambda held: Validity.from_arrays(held, settings.validity),
            wanted=self._demand,
        )
        self.due: dict[AdapterKey, None] = {}
        """Keys with a verdict to act on, to be read, or to be kept."""
        self.wake = anyio.Event()

    def tie(
        self,
        versions: Callable[[AdapterKey], bool],
        in_use: Callable[[AdapterKey], bool],
        made_for: Callable[[AdapterKey], tuple[str, int]],
    ) -> None:
        """``versions``: whether a key has any for its present model. ``in_use``: what is known of it must stay in
        memory. ``made_for``: that model's fingerprint, "" while nobody knows, and up to which version all were made
        for another one.
        """
        self._made_for = made_for
        for known in (self._watches, self._validity):
            known.tie(versions, in_use, lambda key: made_for(key)[0])

    def _begun(self, key: AdapterKey) -> Watch:
        """A version of which nothing was kept was never accepted."""
        watch = Watch(self._settings.canary)
        watch.undone = self._made_for(key)[1]
        return watch

    async def leave(self, model: str) -> None:
        """Another model takes this one's name. What was seen of it is kept, and out of memory."""
        await self.save_all(model)
        self._watches.leave(model)
        self._validity.leave(model)

    def of(self, key: AdapterKey) -> Watch:
        """That of a key which is `ready`; raises LookupError when it is not."""
        return self._watches.of(key)

    async def ready(self, key: AdapterKey) -> Watch:
        """The watch of a key that has versions, or is about to: read from the store if need be."""
        await self._validity.load(key)
        return await self._watches.load(key)

    async def heard(self, key: AdapterKey) -> Watch | None:
        """What was said of a key while it was not in memory counts now. -> its watch, if that is in memory"""
        await self._validity.heard(key)
        return await self._watches.heard(key)

    def validity(self, key: AdapterKey) -> Validity:
        """The key's; one that lets nothing through while it is being read."""
        found = self._validity.get(key)
        if found is None:
            self._validity.want(key)
        return self._unread if found is None else found

    def answered(self, keys: Sequence[AdapterKey], trajectory: Trajectory) -> None:
        """A complete answer to a request of this key chain."""
        if FORM in trajectory.score.parts:
            used = [key for key in keys if key.group == EVERYTHING or self._served(key)]
            self._formed(used[-1], trajectory)
            return
        for key, version in self._concerned(keys, trajectory.adapter):
            self._tell(key, partial(Watch.answered, version=version, trajectory=trajectory), spare=True)

    def rated(self, keys: Sequence[AdapterKey], trajectory: Trajectory, feedback: Feedback) -> None:
        """What was said of an answer first, however often it comes; automatic scores came with the answer."""
        if feedback.kind == "score":
            return
        quality = _CORRECTED if feedback.quality is None else feedback.quality
        for key, version in self._concerned(keys, trajectory.adapter):
            self._tell(key, partial(Watch.rated, version=version, quality=quality, answer=trajectory.request_id))

    def taught(self, keys: Sequence[AdapterKey], feedback_id: str) -> None:
        """Feedback of any kind is a lesson of these keys now, and durable."""
        for key in keys:
            if not is_pattern(key.group) or self._watches.known(key):
                self._tell(key, lambda watch: watch.taught(feedback_id))

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
        valid = trajectory.score.parts[FORM]
        if adapted or trajectory.adapter is None:
            self._validity.tell(key, lambda one: self._observe(key, one, valid, adapted=adapted), spare=True)

    def _observe(self, key: AdapterKey, validity: Validity, valid: float, *, adapted: bool) -> None:
        if validity.observe(valid, adapted=adapted):
            _log.info("adapter %s: constrained answers: %s", key, validity.state)
            validity.changes += _SAVE_EVERY
        if validity.changes >= _SAVE_EVERY and self._watches.versions(key):
            self._demand(key)

    def _tell(self, key: AdapterKey, what: Callable[[Watch], object], *, spare: bool = False) -> None:
        if self._watches.tell(key, what, spare=spare) and self._watches.versions(key):
            watch = self._watches.of(key)
            promotes = self._settings.canary.share < 1.0 and watch.accepted
            if watch.changes >= _SAVE_EVERY or promotes or watch.finding() is not None:
                self._demand(key)

    def _demand(self, key: AdapterKey) -> None:
        self.due[key] = None
        self.wake.set()

    # ---- what is kept

    async def load(self, key: AdapterKey) -> None:
        """Know again what was kept, as far as there is room; the rest when it is needed."""
        await self._watches.recall(key)
        await self._validity.recall(key)

    async def save(self, key: AdapterKey, *, least: int = _SAVE_EVERY) -> None:
        """What is new of this key, if it is as much."""
        await self._watches.save(key, least=least)
        await self._validity.save(key, least=least)

    def restart(self, key: AdapterKey, watch: Watch, writes: Writes) -> Callable[[], None]:
        """The key serves something else now, of which `watch` knows; constrained answers of before say nothing of
        it, unless it is on trial still. Into `writes`; call the result once they are durable.
        """
        validity = self._validity.of(key) if watch.standing else Validity(self._settings.validity)
        self._watches.save_with(writes, key, watch)
        self._validity.save_with(writes, key, validity)
        before = self._watches.of(key)
        known = set(before.lessons)

        def done() -> None:
            for feedback_id in before.lessons:
                if feedback_id not in known:
                    watch.taught(feedback_id)
            self._watches.put(key, watch)
            self._validity.put(key, validity)
            watch.changes, validity.changes = watch.changes + 1, 1  # the ones before may just be on their way

        return done

    async def save_all(self, model: str | None = None) -> None:
        """Everything that is new, at the end. What cannot be kept is evidence lost, nothing else."""
        try:
            await self._watches.save_all(model)
            await self._validity.save_all(model)
        except Exception:
            _log.exception("what was watched could not be kept")

    # ---- what is shown

    def view(self) -> dict[str, Any]:
        """Key -> what is known of the versions on trial, and of constrained answers, of the keys in memory."""
        shown: dict[str, Any] = {str(key): watch.view() for key, watch in self._watches if watch.seen}
        for key, validity in self._validity:
            if validity.seen:
                shown.setdefault(str(key), {})["constrained"] = validity.view()
        return shown

    async def of_key(self, key: AdapterKey) -> dict[str, Any]:
        """The same of one key, in memory or not."""
        watch, validity = await self.ready(key), self._validity.of(key)
        shown = watch.view() if watch.seen else {}
        return {**shown, "constrained": validity.view()} if validity.seen else shown

    def counts(self) -> tuple[Counter[str], Counter[tuple[str, str]]]:
        """Of the keys in memory: answers of versions on trial by tenant with end user, and keys by that and what is
        known of constrained answers. Takes a millisecond.
        """
        answers: Counter[str] = Counter()
        for key, watch in self._watches:
            answers[key.tenant] += watch.answers
        return answers, Counter((key.tenant, one.state) for key, one in self._validity if one.seen)

    def budget(self) -> Budget:
        """As it is now; sizes are those of one that has seen much."""
        (kept, bare), gone = self._watches.held, self._watches.evictions
        nbytes, limit = (one * _SIZE + other * _SIZE // 3 for one, other in ((kept, bare), (MOST, MOST // 2)))
        return Budget("watches", "fixed", kept + bare, nbytes, limit, gone)
