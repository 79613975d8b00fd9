"""Lessons that their giver takes back leave replay, the ledger, and the weights.

That one is taken back needs no host: the ledger has it before anybody is told so, and with it which levels may hold
it in their weights. Such a level goes back to its newest version from before the lesson was given, else to none, as
soon as its host is there; what others taught since is replayed from there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

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

    async def taught(self, root: AdapterKey, request_id: str) -> list[AdapterKey]:
        """The levels that what was said of this answer has taught, the coarsest first. Where the answer is known no
        more: all that were taught enough.
        """
        state, ledger = self._state, await self._state.ledger(root)
        trajectory = await state.store.trajectory(request_id, tenant=root.tenant.partition(":")[0])
        if trajectory is None:
            keys = [root, *(root.at(group) for group in ledger.counts if group != EVERYTHING)]
        else:
            keys = list(chain(root.model, root.tenant, trajectory.route))
        return [key for key in keys if state.active(key)]

    async def take_back(
        self,
        root: AdapterKey,
        taught: Sequence[AdapterKey],
        feedback_id: str,
        *,
        given_at: float,
        now: AdapterKey | None,
    ) -> list[AdapterKey]:
        """Durable when it returns. `now`: what is being replayed. -> those that may hold it in their weights"""
        state, ledger = self._state, await self._state.ledger(root)
        outcome = await state.store.outcome(feedback_id)
        found = [key for key in taught if key == now or self._may_hold(ledger, key.group, feedback_id, outcome)]
        for key in found:
            ledger.undone[key.group] = min(given_at, ledger.undone.get(key.group, given_at))
        ledger.withdraw([feedback_id])
        await ledger.save(state.store)
        book = state.books.get(root)
        if book is not None:
            book.forget([feedback_id])
        return found

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
            lessons = await self._serve_again(key, version)
            in_it = {one for record in records if record.version <= version for one in record.feedback_ids}
            ledger.note([one for one in lessons if one not in in_it], [key.group], keep=state.newest)
            _log.info("adapter %s: back to version %d: %s", key, version, _REASON)
        if ledger.undone[key.group] == given_at:  # else an older one was taken back meanwhile
            del ledger.undone[key.group]
        await ledger.save(state.store)

    async def _serve_again(self, key: AdapterKey, version: int) -> list[str]:
        """-> the lessons that what is undone was made of, as far as it is kept"""
        state = self._state
        async with state.versions.going_back(key, version, reason=_REASON) as back:
            watch = await state.watches.ready(key)
            await state.domains.reopen(key, state.host(key.model).fingerprint, version, back.writes)
            done = state.watches.restart(key, watch.back_to(version, back.newest), back.writes)
        done()
        return list(dict.fromkeys(back.lessons))

    def _may_hold(self, ledger: Ledger, group: str, feedback_id: str, outcome: FeedbackOutcome | None) -> bool:
        """Whether the level's weights may hold the lesson: it made a step there, or a replay saw it."""
        if outcome is None:
            return ledger.counted(feedback_id)  # else nobody came to it yet, and nobody will
        stepped = outcome.status == "published" or outcome.adapter is not None or self._state.mode == "observe"
        return stepped or feedback_id not in ledger.news.get(group, ())


def _last_before(given_at: float, records: Iterable[AdapterRecord], fingerprint: str) -> int:
    fitting = (one for one in records if one.status == "published" and one.fingerprint == fingerprint)
    return max((one.version for one in fitting if one.created_at < given_at), default=0)
