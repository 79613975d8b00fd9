"""Lessons that their giver takes back leave replay, the ledger, and the weights.

That one is taken back needs no host: the ledger has it before anybody is told so, and with it which levels may hold
it in their weights. Such a level goes back to its newest version from before the lesson was given, else to none, as
soon as its host is there; what others taught since is replayed from there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping

from ...events import FeedbackOutcome
from ...lora import AdapterRecord
from .domains import Domains
from .keys import EVERYTHING, AdapterKey, chain
from .ledger import Ledger
from .lessons import DEMONSTRATION
from .line import Line
from .state import State

__all__ = ["Unlearning"]

_log = logging.getLogger(__name__)
_REASON = "a lesson was taken back"
_LEFT = ("rolled_back", "withdrawn")
_COUNTED = ("published", "accepted", "gated")


class Unlearning:
    """Belongs to one event loop."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def take_back(
        self,
        root: AdapterKey,
        feedback_id: str,
        *,
        request_id: str,
        given_at: float,
        running: Callable[[], AdapterKey | None],
    ) -> list[AdapterKey]:
        """Durable when it returns. `running`: what is being replayed, which may be past the point where it looks at
        the epoch. -> the levels that may hold it in their weights
        """
        state, ledger = self._state, await self._state.ledger(root)
        taught, groups = await self._taught(root, request_id)
        groups, quality = await self._counted(root, groups, feedback_id)
        outcome = await state.store.outcome(feedback_id)
        # Nothing runs between here and the save: a replay that began there would learn from it, and not be void.
        taught, now = [key for key in taught if state.active(key)], running()
        seen = self._seen(ledger, feedback_id, outcome, given_at)
        found = [key for key in taught if key == now or seen(key.group)]
        heirs = [root.at(group) for group, born in ledger.born.items() if found and born >= given_at]
        found = list(dict.fromkeys([*found, *heirs]))
        for key in {*taught, *found}:
            state.versions.line(key).epoch += 1
        for key in found:
            ledger.undone[key.group] = min(given_at, ledger.undone.get(key.group, given_at))
        counted = ledger.counted(feedback_id) or (outcome is not None and outcome.status in _COUNTED)
        book = state.books.get(root)
        lesson = None if book is None else book.get(feedback_id)
        again = lesson is not None and book is not None and book.repeats(lesson)
        if counted and groups and not again and not ledger.withdrawn(feedback_id):
            ledger.uncount(groups, quality)
        ledger.withdraw([feedback_id])
        if book is not None:
            book.forget([feedback_id])
        writes = state.store.together()
        writes.drop_captures(feedback_id=feedback_id)
        writes.put_blob(*ledger.blob())
        await writes.commit()
        return found

    async def _taught(self, root: AdapterKey, request_id: str) -> tuple[list[AdapterKey], tuple[str, ...]]:
        """The levels that what was said of this answer may have taught, the coarsest first, and its groups. Where
        the answer is known no more: all, and none.
        """
        state, ledger = self._state, await self._state.ledger(root)
        trajectory = await state.store.trajectory(request_id, tenant=root.tenant.partition(":")[0])
        if trajectory is None:
            return [root, *(root.at(group) for group in ledger.counts if group != EVERYTHING)], ()
        keys = chain(root.model, root.tenant, trajectory.route)
        return list(keys), tuple(key.group for key in keys)

    async def _counted(
        self, root: AdapterKey, groups: tuple[str, ...], feedback_id: str
    ) -> tuple[tuple[str, ...], float | None]:
        """Groups and quality that this feedback was counted with, if it was: as far as they are known."""
        book = self._state.books.get(root)
        lesson = None if book is None else book.get(feedback_id)
        if lesson is not None:
            return lesson.groups, lesson.quality
        places = [str(root.at(group)) for group in groups[-1:]]
        found = await self._state.store.newest_captures(
            places, lambda head: head.feedback_id == feedback_id, limit=1
        )
        return groups, next((signal for _, _, signal in found if signal != DEMONSTRATION), None)

    async def go_back(self, key: AdapterKey) -> None:
        """To before what was taken back, where that is still to be done. What others taught since waits for replay
        again. Raises HostAway, HostError.
        """
        state, ledger = self._state, await self._state.ledger(key)
        given_at = ledger.undone.get(key.group)
        if given_at is None:
            return
        line, fingerprint = state.versions.line(key), state.host(key.model).fingerprint
        records, current = await self._records(key), (await state.store.current_versions()).get(str(key), 0)
        kept = records.get(current)  # the line's, unless it is another model's or going back has failed halfway
        here = (line.served, line.candidate, kept if kept and kept.fingerprint == fingerprint else None)
        if any(one is not None and one.created_at >= given_at for one in here):
            await self._serve_before(line, given_at, records)
        else:
            await self._leave(line, given_at, current)
        if ledger.undone[key.group] == given_at:  # else an older one was taken back meanwhile
            del ledger.undone[key.group]
        await ledger.save(state.store)

    async def _serve_before(self, line: Line, given_at: float, records: Mapping[int, AdapterRecord]) -> None:
        state, key, fingerprint = self._state, line.key, self._state.host(line.key.model).fingerprint
        version = _before(await state.ledger(key), given_at, records, line.working, fingerprint)
        async with state.versions.going_back(key, version, reason=_REASON, taught=given_at) as back:
            watch = await state.watches.ready(key)
            await state.domains.reopen(key, fingerprint, version, back.writes)
            done = state.watches.restart(key, watch.back_to(version, back.newest), back.writes)
        done()
        await self._note(key, records, version, back.lessons)

    async def _leave(self, line: Line, given_at: float, current: int) -> None:
        """Versions that nobody is served now: observed ones, such as no host took, and another model's."""
        state, key = self._state, line.key
        async with line.lock:
            ledger, records, now = await state.ledger(key), await self._records(key), line.working
            if now is not None and now.created_at >= given_at:
                version = _before(ledger, given_at, records, now, now.fingerprint, "observed")
                await self._reopen(state.domains, now, version)
                line.working, line.fit = records.get(version), None
                line.epoch += 1
                state.versions.shelf.note(line)
                later = [one for one in records.values() if one.version > version]
                await self._note(key, records, version, [name for one in later for name in one.feedback_ids])
            awaited = records.get(current)
            if awaited is not None and awaited.created_at >= given_at:  # it is served when its model comes back
                version = _before(ledger, given_at, records, awaited, awaited.fingerprint)
                await self._reopen(Domains(state.store), awaited, version)
                await state.store.set_current(str(key), version, reason=_REASON)
        await state.versions.withdraw(key, 0, given_at)

    async def _records(self, key: AdapterKey) -> dict[int, AdapterRecord]:
        return {one.version: one for one in await self._state.store.adapters(str(key))}

    async def _reopen(self, domains: Domains, record: AdapterRecord, version: int) -> None:
        writes = self._state.store.together()
        await domains.reopen(AdapterKey.parse(record.key), record.fingerprint, version, writes)
        await writes.commit()

    async def _note(
        self, key: AdapterKey, records: Mapping[int, AdapterRecord], version: int, lessons: Iterable[str]
    ) -> None:
        """Those of what is undone, as far as it is kept, that this version is not made of wait for a replay, and a
        cycle that is undone is due again.
        """
        state, ledger = self._state, await self._state.ledger(key)
        in_it = {name for one in records.values() if one.version <= version for name in one.feedback_ids}
        new = [name for name in dict.fromkeys(lessons) if name not in in_it]
        ledger.note(new, [key.group], keep=state.newest)
        undone = (one for one in records.values() if one.version > version and one.status not in _LEFT)
        if any(one.reason == "consolidate" for one in undone):
            least = state.settings.consolidate_every
            ledger.unfolded[key.group] = max(ledger.unfolded.get(key.group, 0), least)
        _log.info("adapter %s: back to version %d: %s", key, version, _REASON)

    def _seen(
        self, ledger: Ledger, feedback_id: str, outcome: FeedbackOutcome | None, given_at: float
    ) -> Callable[[str], bool]:
        """Whether a level's weights may hold the lesson: it made a step there, or a replay or a cycle saw it."""
        stepped = outcome is not None and (outcome.status == "published" or outcome.adapter is not None)
        if outcome is None or stepped or self._state.mode == "observe":
            held = outcome is not None or ledger.counted(feedback_id)  # else nobody came to it yet, and nobody will
            return lambda group: held
        taken, news = ledger.taken, ledger.news
        return lambda group: given_at <= taken.get(group, -math.inf) or feedback_id not in news.get(group, ())


def _before(
    ledger: Ledger,
    given_at: float,
    records: Mapping[int, AdapterRecord],
    now: AdapterRecord | None,
    fingerprint: str,
    *also: str,
) -> int:
    """The newest version from before that `now` was made from, and that was served or has the status `also`. 0:
    none, or none is kept.
    """

    def fits(one: AdapterRecord) -> bool:
        known = one.status in ("published", *also) and one.fingerprint == fingerprint
        return known and one.created_at < given_at and not any(map(ledger.withdrawn, one.feedback_ids))

    at = 0 if now is None else now.version
    while at in records and not fits(records[at]):
        at = records[at].parent or 0
    if at in records:
        return at
    return max((n for n, one in records.items() if n < at and fits(one)), default=0)  # its parents are not kept
