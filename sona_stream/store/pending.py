"""Trajectories on their way to the disk: a bounded queue that readers can already look into."""

from __future__ import annotations

import dataclasses
import threading
import time

from ..events import Trajectory

__all__ = ["Entry", "Pending"]

_Key = tuple[str, str]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One queued trajectory, already redacted, with the names it can be found by."""

    trajectory: Trajectory
    names: tuple[bytes, ...]
    stored_at: float
    """time.time() of its submission; what the TTL counts from"""
    queued_at: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def key(self) -> _Key:
        """(tenant, request id)"""
        return self.trajectory.tenant, self.trajectory.request_id

    @property
    def nbytes(self) -> int:
        """About what it holds in memory."""
        one = self.trajectory
        text = len(one.body or b"") + 4 * (len(one.answer or "") + len(one.query or ""))
        features = 36 * (len(one.prompt_ids) + len(one.token_ids))
        return 2000 + text + features + (0 if one.embedding is None else int(one.embedding.nbytes))


class Pending:
    """Newest entries win: what does not fit pushes the oldest out, and is counted. Thread-safe.

    An entry stays visible until `done` says that it is on disk, so a reader that looks here first and at the
    database second misses nothing.
    """

    def __init__(self, *, capacity: int, max_bytes: int) -> None:
        self._capacity = capacity
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._queue: dict[_Key, Entry] = {}
        self._writing: dict[_Key, Entry] = {}
        self._bytes = 0
        self.drops = 0

    def __len__(self) -> int:
        return len(self._queue) + len(self._writing)

    @property
    def queued(self) -> int:
        """Entries that no `take` has taken."""
        return len(self._queue)

    def add(self, entry: Entry) -> bool:
        """True when the queue was empty before."""
        with self._lock:
            first = not self._queue
            self._push(entry)
            self._trim()
            return first

    def oldest(self) -> float | None:
        """`queued_at` of the entry that has waited longest."""
        with self._lock:
            return next(iter(self._queue.values())).queued_at if self._queue else None

    def take(self, limit: int) -> list[Entry]:
        """The oldest `limit` entries; follow with `done` or `give_back`. One taker at a time."""
        with self._lock:
            keys = [key for key, _ in zip(self._queue, range(limit), strict=False)]
            for key in keys:
                entry = self._queue.pop(key)
                self._bytes -= entry.nbytes
                self._writing[key] = entry
            return list(self._writing.values())

    def done(self) -> None:
        """What was taken is on disk (or refused for good)."""
        with self._lock:
            self._writing.clear()

    def give_back(self) -> None:
        """What was taken could not be written: it goes back to the front, if there is room."""
        with self._lock:
            newer, self._queue, self._bytes = self._queue, {}, 0
            for entry in (*self._writing.values(), *newer.values()):
                self._push(entry)
            self._writing.clear()
            self._trim()

    def clear(self) -> int:
        """Drop everything; returns how many that were."""
        with self._lock:
            lost = len(self._queue)
            self._queue.clear()
            self._bytes = 0
            self.drops += lost
            return lost

    def snapshot(self) -> list[Entry]:
        """All entries, oldest submission first; a newer one under the same key hides the older."""
        with self._lock:
            return list((self._writing | self._queue).values())

    def get(self, tenant: str, request_id: str) -> Trajectory | None:
        """By key."""
        with self._lock:
            entry = self._queue.get((tenant, request_id)) or self._writing.get((tenant, request_id))
        return None if entry is None else entry.trajectory

    def _push(self, entry: Entry) -> None:
        older = self._queue.pop(entry.key, None)
        self._bytes += entry.nbytes - (0 if older is None else older.nbytes)
        self._queue[entry.key] = entry

    def _trim(self) -> None:
        while len(self._queue) > self._capacity or (self._bytes > self._max_bytes and len(self._queue) > 1):
            oldest = self._queue.pop(next(iter(self._queue)))
            self._bytes -= oldest.nbytes
            self.drops += 1
