"""The bounded way in: what does not fit stays in the store, where it is committed, and is fetched later."""

from __future__ import annotations

import dataclasses
from collections import deque

import anyio

from ...events import Feedback, FeedbackOutcome
from ...protocols import Store

__all__ = ["Inbox", "Item"]


@dataclasses.dataclass(slots=True, eq=False)
class Item:
    """A feedback on its way, and whoever waits for what becomes of it."""

    feedback: Feedback
    resumed: bool = False
    """Fetched from the store, where an earlier run may have left it half done."""
    done: anyio.Event = dataclasses.field(default_factory=anyio.Event)
    outcome: FeedbackOutcome | None = None
    error: Exception | None = None


class Inbox:
    """First in, first out. Nothing is lost: an overflow is counted and later read from `pending_feedback`."""

    def __init__(self, capacity: int, store: Store) -> None:
        self._capacity, self._store = capacity, store
        self._queue: deque[Item] = deque()
        self._known: dict[str, Item] = {}
        self._arrived = anyio.Event()
        self._behind = False
        self.overflows = 0

    def __len__(self) -> int:
        """Known and unfinished, the one at work included."""
        return len(self._known)

    @property
    def idle(self) -> bool:
        """Nothing here and nothing left in the store."""
        return not self._known and not self._behind

    def offer(self, feedback: Feedback) -> Item | None:
        """The item to wait on (the earlier one, if this feedback is already on its way); None when full."""
        if feedback.id in self._known:
            return self._known[feedback.id]
        if len(self._known) >= self._capacity:
            self.overflows += 1
            self.look_behind()
            return None
        return self._add(Item(feedback))

    def look_behind(self) -> None:
        """There is feedback in the store that was not offered, or did not fit."""
        self._behind = True
        self._arrived.set()

    async def next(self) -> Item:
        """The oldest; waits for one."""
        while not self._queue:
            if self._behind:
                await self._fetch()
            else:
                self._arrived = anyio.Event()
                await self._arrived.wait()
        return self._queue.popleft()

    def finish(self, item: Item, *, outcome: FeedbackOutcome | None, error: Exception | None = None) -> None:
        """Wakes whoever waits."""
        item.outcome, item.error = outcome, error
        self._known.pop(item.feedback.id, None)
        item.done.set()

    def close(self) -> None:
        """Wakes everyone who still waits, without an outcome: their feedback stays in the store."""
        for item in tuple(self._known.values()):
            self.finish(item, outcome=None)
        self._queue.clear()

    async def _fetch(self) -> None:
        self._behind = False
        for feedback in await self._store.pending_feedback():
            if len(self._known) >= self._capacity:
                self._behind = True
                break
            if feedback.id not in self._known:
                self._add(Item(feedback, resumed=True))

    def _add(self, item: Item) -> Item:
        self._known[item.feedback.id] = item
        self._queue.append(item)
        self._arrived.set()
        return item
