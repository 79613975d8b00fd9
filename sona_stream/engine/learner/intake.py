"""Feedback on its way into the learner: one at a time, each with an outcome or a later try."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import anyio

from ...errors import CaptureGone, HostError
from ...events import Feedback, FeedbackOutcome
from .background import BackgroundLoop
from .inbox import Inbox, Item
from .instant import InstantLoop, ModelAway, skipped
from .keys import AdapterKey
from .state import State

__all__ = ["Intake", "queued"]

_log = logging.getLogger(__name__)


class Intake:
    """Takes from the inbox for ever; nothing that is given here is lost, and nothing ends it."""

    def __init__(self, state: State, instant: InstantLoop, background: BackgroundLoop) -> None:
        self.inbox = Inbox(state.settings.inbox, state.store)
        self._state, self._instant, self._background = state, instant, background
        self.progress = anyio.Event()
        """Set, and another one in its place, after each feedback"""

    async def run(self) -> None:
        """For ever."""
        while True:
            item = await self.inbox.next()
            await self._finish(item)
            self.progress.set()
            self.progress = anyio.Event()

    async def give_up(self, feedback: Feedback, error: CaptureGone) -> None:
        """Its answer can no longer be reconstructed."""
        self._state.counters["capture_gone"] += 1
        await self._state.store.record_outcome(skipped(feedback, error))

    async def _finish(self, item: Item) -> None:
        """One feedback. A failure of ours leaves it pending, to be tried again, and the worker alive."""
        feedback, store = item.feedback, self._state.store
        try:
            known = await store.outcome(feedback.id)
            if known is not None:
                self.inbox.finish(item, outcome=known)
                return
            try:
                hurried = not item.awaited and len(self.inbox) > self._state.settings.replay_every
                outcome, keys = await self._instant.process(feedback, resumed=item.resumed, hurried=hurried)
            except CaptureGone as error:
                await self.give_up(feedback, error)
                self.inbox.finish(item, outcome=None, error=error)
                return
            except HostError as error:
                outcome, keys = await self._refused(feedback, error), ()
            self.inbox.finish(item, outcome=outcome)
            if keys:
                await self._learned(feedback, keys)
        except ModelAway as error:
            self._state.counters["waited_for_host"] += 1
            told = queued(feedback, f"the feedback is kept and will be learned later: {error}")
            self.inbox.put_off(item, None, told, model=error.model)
        except Exception as error:
            self._state.counters["failures"] += 1
            _log.exception("feedback %s could not be learned now; it is tried again later", feedback.id)
            self.inbox.put_off(item, error)

    async def _learned(self, feedback: Feedback, keys: Sequence[AdapterKey]) -> None:
        """Up to the levels of these keys, the coarsest first."""
        root = keys[0]
        self.inbox.answers(root.model)
        if (await self._state.ledger(root)).withdrawn(feedback.id):  # taken back while it was learned
            given_at, request_id = feedback.created_at, feedback.request_id
            await self._background.unlearn(root, feedback.id, request_id=request_id, given_at=given_at)
        self._background.look(keys)

    async def _refused(self, feedback: Feedback, error: HostError) -> FeedbackOutcome:
        """What the host does not take (an answer beyond the model's context) it will not take later either."""
        self._state.counters["host_errors"] += 1
        _log.warning("feedback %s is not learned from: %s", feedback.id, error)
        outcome = skipped(feedback, error)
        await self._state.store.record_outcome(outcome)
        return outcome


def queued(feedback: Feedback, reason: str) -> FeedbackOutcome:
    """It is kept, and not decided."""
    return FeedbackOutcome(feedback_id=feedback.id, status="queued", reason=reason)
