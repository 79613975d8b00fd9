"""What people said of answers and still stands, newest first: the order in which it is taken back."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple

from ..episodes import Episode, person_of
from ..events import Feedback, FeedbackOutcome, Principal, Trajectory
from ..protocols import Store

__all__ = ["TAKEN_BACK", "Said", "Standing", "refusal"]

TAKEN_BACK = "taken back"
"""Reason of the outcome of what was: durable, and seen by whoever learns it later."""

_PAGE = 64
_HEARD = 4096


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
        self._heard: deque[Feedback] = deque(maxlen=_HEARD)

    def hear(self, feedback: Feedback) -> None:
        """Somebody has just said this. A correction's text is of no use here."""
        if not self._names:
            self._heard.append(dataclasses.replace(feedback, correction=None))

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
            for one in reversed(tuple(self._heard)):
                if (one.tenant, person_of(one.user, one.key_id)) == (tenant, person):
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
