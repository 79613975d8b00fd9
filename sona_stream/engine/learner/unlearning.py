"""Lessons that their giver takes back leave replay, the ledger, and the weights.

That one is taken back needs no host: the ledger has it before anybody is told so, and with it which levels may hold
it in their weights. Such a level goes back to its newest version from before the lesson was given, else to none, as
soon as its host is there; what others taught since is replayed from there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable

from ...events import FeedbackOutcome
from ...lora import AdapterRecord
from .keys import EVERYTHING, AdapterKey, chain
from .ledger import Ledger
from .state import State

__all__ = ["Unlearning"]

_log = logging.getLogger(__name__)
_REASON = "a lesson was taken back"


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
        taught = await self._taught(root, request_id)
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
        ledger.withdraw([feedback_id])
        book = state.books.get(root)
        if book is not None:
            book.forget([feedback_id])
        await ledger.save(state.store)
        return found

    async def _taught(self, root: AdapterKey, request_id: str) -> list[AdapterKey]:
        """The levels that what was said of this answer may have taught, the coarsest first. Where the answer is
        known no more: all.
        """
        state, ledger = self._state, await self._state.ledger(root)
        trajectory = await state.store.trajectory(request_id, tenant=root.tenant.partition(":")[0])
        if trajectory is None:
            return [root, *(root.at(group) for group in ledger.counts if group != EVERYTHING)]
        return list(chain(root.model, root.tenant, trajectory.route))

    async def go_back(self, key: AdapterKey) -> None:
        """To before what was taken back, where that is still to be done. What others taught since waits for replay
        again. Raises HostAway, HostError.
        """
        state, ledger = self._state, await self._state.ledger(key)
        given_at = ledger.undone.get(key.group)
        if given_at is None:
            return
        records = await state.store.adapters(str(key))
        fingerprint, line = state.host(key.model).fingerprint, state.versions.line(key)
        version = _last_before(given_at, records, fingerprint)
        if any(one is not None and one.version > version for one in (line.served, line.working, line.candidate)):
            lessons = await self._serve_again(key, version, given_at)
            in_it = {one for record in records if record.version <= version for one in record.feedback_ids}
            ledger.note([one for one in lessons if one not in in_it], [key.group], keep=state.newest)
            _log.info("adapter %s: back to version %d: %s", key, version, _REASON)
        elif any(one.version > version for one in records):
            await state.versions.withdraw(key, version, given_at)
        if ledger.undone[key.group] == given_at:  # else an older one was taken back meanwhile
            del ledger.undone[key.group]
        await ledger.save(state.store)

    async def _serve_again(self, key: AdapterKey, version: int, given_at: float) -> list[str]:
        """-> the lessons that what is undone was made of, as far as it is kept"""
        state = self._state
        async with state.versions.going_back(key, version, reason=_REASON, taught=given_at) as back:
            watch = await state.watches.ready(key)
            await state.domains.reopen(key, state.host(key.model).fingerprint, version, back.writes)
            done = state.watches.restart(key, watch.back_to(version, back.newest), back.writes)
        done()
        return list(dict.fromkeys(back.lessons))

    def _seen(
        self, ledger: Ledger, feedback_id: str, outcome: FeedbackOutcome | None, given_at: float
    ) -> Callable[[str], bool]:
        """Whether a level's weights may hold the lesson: it made a step there, or a replay or a cycle saw it."""
        stepped = outcome is not None and (outcome.status == "published" or outcome.adapter is not None)
        if outcome is None or stepped or self._state.mode == "observe":
            held = outcome is not None or ledger.counted(feedback_id)  # else nobody came to it yet, and nobody will
            return lambda group: held
        cycled, news = ledger.cycled, ledger.news
        return lambda group: given_at <= cycled.get(group, -math.inf) or feedback_id not in news.get(group, ())


def _last_before(given_at: float, records: Iterable[AdapterRecord], fingerprint: str) -> int:
    fitting = (one for one in records if one.status == "published" and one.fingerprint == fingerprint)
    return max((one.version for one in fitting if one.created_at < given_at), default=0)
