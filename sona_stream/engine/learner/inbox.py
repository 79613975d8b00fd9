"""The bounded way in: what does not fit stays in the store, where it is committed, and is fetched later."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import deque

import anyio

from ...events import Feedback, FeedbackOutcome
from ...protocols import Store

__all__ = ["Failed", "Inbox", "Item", "again"]

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 300.0


@dataclasses.dataclass(slots=True, eq=False)
class Item:
    """A feedback on its way, and whoever waits for what becomes of it."""

    feedback: Feedback
    resumed: bool = False
    """Fetched from the store, where an earlier try may have left it half done."""
    awaited: bool = False
    """Somebody waits for what becomes of it."""
    done: anyio.Event = dataclasses.field(default_factory=anyio.Event)
    outcome: FeedbackOutcome | None = None
    error: Exception | None = None


@dataclasses.dataclass(slots=True)
class Failed:
    """When what failed is tried again, and after how long a pause (seconds)."""

    due: float
    pause: float
    model: str = ""
    """It waits for this model's host, and its pause is the model's."""


class Inbox:
    """First in, first out. Nothing is lost: an overflow is counted and later read from `pending_feedback`, and so
    is what failed, after a pause that doubles with each try. Of a model that is away one is tried for all of them.
    """

    def __init__(self, capacity: int, store: Store) -> None:
        self._capacity, self._store = capacity, store
        self._queue: deque[Item] = deque()
        self._known: dict[str, Item] = {}
        self._failed: dict[str, Failed] = {}
        """What is not yet to be tried again; as long as it waits in the store, or it would be tried at once."""
        self._away: dict[str, Failed] = {}
        """Models whose host did not answer"""
        self._next_try = math.inf
        self._fetch_failed = Failed(due=math.inf, pause=0.0)
        self._arrived = anyio.Event()
        self._behind = False
        self.overflows = 0

    def __len__(self) -> int:
        """Known and unfinished, the one at work included."""
        return len(self._known)

    @property
    def idle(self) -> bool:
        """Nothing here and nothing left in the store but what failed and waits for its next try."""
        return not self._known and not self._behind

    def offer(self, feedback: Feedback) -> Item | None:
        """The item to wait on (the earlier one, if this feedback is already on its way); None when full."""
        if feedback.id in self._known:
            return self._known[feedback.id]
        if len(self._known) >= self._capacity:
            self.overflows += 1
            self.look_behind()
            return None
        return self._add(Item(feedback, resumed=feedback.id in self._failed))

    def look_behind(self) -> None:
        """There is feedback in the store that was not offered, or did not fit."""
        self._behind = True
        self._arrived.set()

    async def next(self) -> Item:
        """The oldest; waits for one."""
        while True:
            due = self._soonest() <= anyio.current_time() and len(self._known) < self._capacity
            if due or (self._behind and not self._queue):
                await self._fetch()
            if self._queue:
                return self._queue.popleft()
            if not self._behind:
                self._arrived = anyio.Event()
                with anyio.CancelScope(deadline=self._soonest()):
                    await self._arrived.wait()

    def finish(self, item: Item, *, outcome: FeedbackOutcome | None, error: Exception | None = None) -> None:
        """Wakes whoever waits."""
        failed = self._end(item, outcome, error)
        self.answers("" if failed is None else failed.model)

    def put_off(
        self, item: Item, error: Exception | None, outcome: FeedbackOutcome | None = None, *, model: str = ""
    ) -> None:
        """It failed, not its fault: wakes whoever waits, and it is fetched again later. `model`: this one's host is
        away, and with it everything that is known to wait for it.
        """
        earlier = self._end(item, outcome, error)
        if model:
            away = self._away.get(model)
            if away is None or away.due <= anyio.current_time():
                away = self._away[model] = again(0.0 if away is None else away.pause)
            failed = Failed(away.due, away.pause, model)
        else:
            self.answers("" if earlier is None else earlier.model)
            failed = again(0.0 if earlier is None or earlier.model else earlier.pause)
        self._failed[item.feedback.id] = failed
        self._next_try = min(self._next_try, failed.due)

    def answers(self, model: str) -> None:
        """The model's host was not away just now."""
        if model in self._away:
            self.retry(model)

    def retry(self, model: str) -> None:
        """The model's host answers again: what waits for it is tried now."""
        self._away.pop(model, None)
        self.look_behind()

    def close(self) -> None:
        """Wakes everyone who still waits, without an outcome: their feedback stays in the store."""
        for item in tuple(self._known.values()):
            self.finish(item, outcome=None)
        self._queue.clear()

    def _end(self, item: Item, outcome: FeedbackOutcome | None, error: Exception | None) -> Failed | None:
        """-> its last failure"""
        item.outcome, item.error = outcome, error
        self._known.pop(item.feedback.id, None)
        item.done.set()
        return self._failed.pop(item.feedback.id, None)

    def _soonest(self) -> float:
        return min(self._fetch_failed.due, self._next_try)

    async def _fetch(self) -> None:
        try:
            pending = await self._store.pending_feedback()
        except Exception:
            _log.exception("the feedback that waits in the store cannot be read now; it stays there")
            self._behind, self._fetch_failed = False, again(self._fetch_failed.pause)
            return
        self._behind, self._fetch_failed = False, Failed(due=math.inf, pause=0.0)
        self._take(pending, anyio.current_time())

    def _take(self, pending: list[Feedback], now: float) -> None:
        waiting = {feedback.id for feedback in pending}
        for name in [name for name in self._failed if name not in waiting and name not in self._known]:
            del self._failed[name]  # forgotten, or decided otherwise
        self._next_try, asked = math.inf, self._asked()
        for feedback in pending:
            failed = self._failed.get(feedback.id)
            due = -math.inf if failed is None else self._due(failed)
            if due > now:
                self._next_try = min(self._next_try, due)
            if feedback.id in self._known or due > now or (failed is not None and failed.model in asked):
                continue
            if len(self._known) >= self._capacity:
                self._behind = True
                break
            if failed is not None and failed.model in self._away:
                asked.add(failed.model)
            self._add(Item(feedback, resumed=True))

    def _due(self, failed: Failed) -> float:
        if not failed.model:
            return failed.due
        return self._away[failed.model].due if failed.model in self._away else -math.inf

    def _asked(self) -> set[str]:
        """Models that are away, of which one is on its way to be tried."""
        on_the_way = (self._failed[name].model for name in self._known if name in self._failed)
        return {model for model in on_the_way if model in self._away}

    def _add(self, item: Item) -> Item:
        self._known[item.feedback.id] = item
        self._queue.append(item)
        self._arrived.set()
        return item


def again(pause: float) -> Failed:
    """After a pause twice as long as the last one, 0 for none."""
    longer = min(max(2 * pause, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
    return Failed(due=anyio.current_time() + longer, pause=longer)
