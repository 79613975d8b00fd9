"""What people said of answers and still stands, newest first: the order in which it is taken back."""

from __future__ import annotations

import dataclasses
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from typing import NamedTuple

from ..episodes import Episode, person_of
from ..events import Feedback, FeedbackOutcome, Principal, Trajectory
from ..protocols import Store

__all__ = ["TAKEN_BACK", "Said", "Standing", "refusal"]

TAKEN_BACK = "taken back"
"""Reason of the outcome of what was: durable, and seen by whoever learns it later."""

_PAGE = 64
_HEARD = 64
"""Judgements of one person that are known without a store"""
_PEOPLE = 2048
"""Who judged, known without a store; beyond, the tenant with the most gives up who has been silent for longest"""


class Standing(NamedTuple):
    """One judgement, and what is known of it."""

    feedback: Feedback
    outcome: FeedbackOutcome | None
    """None: it waits to be learned from"""
    trajectory: Trajectory | None
    episode: Episode | None
    """What the memory made of it, wherever that is used by now"""

    @property
    def model(self) -> str:
        """Empty when it is not known any more."""
        found = self.episode or self.trajectory
        return "" if found is None else found.model


class Said:
    """Of one program."""

    def __init__(self, store: Store, *, names: bool) -> None:
        """``names``: whether the store keeps who said it (not at `sona.storage: none`). Where it does not, that is
        known as long as this process lives; so are the episodes.
        """
        self._store, self._names = store, names
        self._heard: dict[str, OrderedDict[str, deque[Feedback]]] = {}
        """Tenant -> person -> the newest last"""
        self._people = 0

    def hear(self, feedback: Feedback) -> None:
        """Somebody has just said this. A correction's text is of no use here."""
        if self._names:
            return
        people = self._heard.setdefault(feedback.tenant, OrderedDict())
        person = person_of(feedback.user, feedback.key_id)
        if person not in people:
            people[person] = deque(maxlen=_HEARD)
            self._people += 1
        people[person].append(dataclasses.replace(feedback, correction=None))
        people.move_to_end(person)
        if self._people > _PEOPLE:
            max(self._heard.values(), key=len).popitem(last=False)
            self._people -= 1

    async def by(
        self, principal: Principal, request_id: str | None = None
    ) -> AsyncIterator[tuple[Feedback, FeedbackOutcome | None]]:
        """What this person said and did not take back, of this request or of any, newest first."""
        async for feedback in self._all(principal.tenant, person_of(principal.user, principal.key_id)):
            if request_id in (None, feedback.request_id):
                outcome = await self._store.outcome(feedback.id)
                if outcome is None or outcome.reason != TAKEN_BACK:
                    yield feedback, outcome

    async def _all(self, tenant: str, person: str) -> AsyncIterator[Feedback]:
        if not self._names:
            people = self._heard.get(tenant, OrderedDict())
            for one in reversed(tuple(people.get(person, ()))):
                yield one
            return
        limit, given = _PAGE, 0
        while True:
            found = await self._store.feedback(tenant=tenant, person=person, limit=limit)
            for one in reversed(found[: len(found) - given]):
                yield one
            if len(found) < limit:
                return
            limit, given = 8 * limit, len(found)


def refusal(said: Standing, why: str, other: Episode | None) -> str:
    """``other``: what the person can take back all the same."""
    feedback = said.feedback
    what = f"value of {feedback.metric_name}" if feedback.kind == "metric" else feedback.kind
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(feedback.created_at))
    told = f"your last feedback, the {what} of request {feedback.request_id} ({when}), cannot be taken back: {why}"
    if other is None:
        return told
    older = "correction" if other.kind == "correction" else "answer that you accepted"
    return (
        f"{told}; your last {older} that can be is of request {other.request_id}: "
        "give that as request_id, in the chat as /undo REQUEST"
    )
