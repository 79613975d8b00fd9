"""The one thread that writes: everything that waits when it comes round shares one transaction, one fsync.

Group commit as in DeWitt et al. 1984 (https://doi.org/10.1145/602259.602261): while a commit is on its way to the
disk the next jobs gather behind it, so throughput rises with load while a lone job waits for nobody.
"""

from __future__ import annotations

import dataclasses
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from ..errors import StateError
from .pending import Entry, Pending
from .schema import BUSY_TIMEOUT_MS

__all__ = ["Writer", "write_error"]

T = TypeVar("T")
_log = logging.getLogger("sona_stream.store")

_BATCH = 1024
_RETRY_S = 1.0
_ERASE_S = 0.5
_ERASE_WAIT_MS = 100


def write_error(directory: Path, error: BaseException) -> StateError:
    """The clear form of what SQLite or the file system said."""
    message = f"the state in {directory} cannot be written: {error}"
    text = str(error).lower()
    if "full" in text or "no space" in text:
        message += "; free some space on its disk, or name another folder in sona.state_dir"
    elif "readonly" in text or "read-only" in text or "permission" in text:
        message += "; make the folder writable, or name another one in sona.state_dir"
    elif "malformed" in text or "not a database" in text:
        message += "; it is damaged: look with `sona-stream state verify`, go back with `sona-stream state restore`"
    return StateError(message)


@dataclasses.dataclass(slots=True, eq=False)
class _Job:
    run: Callable[[sqlite3.Connection], Any]
    after: Callable[[Any], None] | None
    future: Future[Any]
    result: Any = None
    error: BaseException | None = None


class Writer:
    """Owns the writing connection and the thread. ``submit`` and ``wake`` may be called from any thread."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        pending: Pending,
        write_entries: Callable[[sqlite3.Connection, list[Entry]], None],
        *,
        directory: Path,
        flush_s: float,
    ) -> None:
        self._connection = connection
        self._pending = pending
        self._write_entries = write_entries
        self._directory = directory
        self._flush_s = flush_s
        self._condition = threading.Condition()
        self._jobs: list[_Job] = []
        self._closing = False
        self._retry_at = 0.0
        self._erase_at: float | None = None
        self.errors = 0
        self.commits = 0
        self.last_error: str | None = None
        self._thread = threading.Thread(target=self._run, name="sona-store-writer", daemon=True)
        self._thread.start()

    def submit(self, run: Callable[[sqlite3.Connection], T], after: Callable[[T], None] | None = None) -> Future[T]:
        """Run `run` in the next transaction, then `after` once that is durable; the future resolves last."""
        job = _Job(run, after, Future())
        with self._condition:
            if self._closing:
                raise StateError(f"the store of {self._directory} is closed")
            self._jobs.append(job)
            self._condition.notify()
        return job.future

    def wake(self) -> None:
        """There is a first pending trajectory: its time starts now."""
        with self._condition:
            self._condition.notify()

    def erase_log(self) -> None:
        """Soon overwrite what the write-ahead log still holds of deleted rows. Writer thread only."""
        if self._erase_at is None:
            self._erase_at = time.monotonic() + _ERASE_S

    def close(self) -> None:
        """Write what is left, empty the log, end the thread. Blocks."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            jobs, entries, last = self._next()
            if jobs or entries:
                self._commit(jobs, entries)
            if self._erase_at is not None and time.monotonic() >= self._erase_at:
                self._erase()
            if last and not self._jobs and (not self._pending.queued or self._retry_at > time.monotonic()):
                break
        lost = self._pending.clear()
        if lost:
            _log.error("%d trajectories could not be written before closing: %s", lost, self.last_error)
        self._erase()
        self._connection.close()

    def _next(self) -> tuple[list[_Job], list[Entry], bool]:
        """Wait until something is due."""
        with self._condition:
            while not (self._jobs or self._closing):
                wait = self._due() - time.monotonic()
                if wait <= 0:
                    break
                self._condition.wait(None if wait == float("inf") else wait)
            jobs, self._jobs = self._jobs, []
            last = self._closing
        ready = last or time.monotonic() >= self._retry_at
        return jobs, self._pending.take(_BATCH) if ready else [], last

    def _due(self) -> float:
        oldest = self._pending.oldest()
        flush = float("inf") if oldest is None else max(oldest + self._flush_s, self._retry_at)
        return min(flush, float("inf") if self._erase_at is None else self._erase_at)

    def _commit(self, jobs: list[_Job], entries: list[Entry]) -> None:
        jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        error = self._transact(jobs, entries)
        if error is not None and entries:
            self._pending.give_back()
            self._retry_at = time.monotonic() + _RETRY_S
            error = self._transact(jobs, []) if jobs else None  # what somebody waits for may still fit
        elif entries:
            self._pending.done()
        for job in jobs:
            self._deliver(job, error)

    def _transact(self, jobs: list[_Job], entries: list[Entry]) -> Exception | None:
        """One transaction; what went wrong with it as a whole, after a rollback."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._write_entries(self._connection, entries)
            for job in jobs:
                self._run_job(job)
            self._connection.execute("COMMIT")
        except Exception as error:  # the thread must live; everybody who waits is told
            self._count(error)
            self._roll_back()
            return error
        self.commits += 1
        return None

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            self._count(error)

    def _run_job(self, job: _Job) -> None:
        """In a savepoint of its own, so that one job's error leaves the others' work alone."""
        job.result = job.error = None
        self._connection.execute("SAVEPOINT job")
        try:
            job.result = job.run(self._connection)
        except Exception as error:
            if not self._connection.in_transaction:
                raise  # a full disk or an I/O error has ended the whole transaction
            self._connection.execute("ROLLBACK TO job")
            is_io = isinstance(error, (sqlite3.Error, OSError))
            job.error = write_error(self._directory, error) if is_io else error
            if is_io:
                self._count(error)
        self._connection.execute("RELEASE job")

    def _deliver(self, job: _Job, failed: Exception | None) -> None:
        if failed is not None:
            failure = write_error(self._directory, failed)
            failure.__cause__ = failed
            job.future.set_exception(failure)
        elif job.error is not None:
            job.future.set_exception(job.error)
        else:
            self._run_after(job)
            job.future.set_result(job.result)

    def _run_after(self, job: _Job) -> None:
        if job.after is not None:
            try:
                job.after(job.result)
            except OSError as error:  # a file that could not be removed: it is an orphan until the next open
                self._count(error)

    def _erase(self) -> None:
        self._erase_at = None
        try:
            self._connection.execute(f"PRAGMA busy_timeout={_ERASE_WAIT_MS}")
            busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            self._connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        except sqlite3.Error as error:
            self._count(error)
            return
        if busy:  # a reader is still in the log (a backup, say): once more, later
            self.erase_log()

    def _count(self, error: BaseException) -> None:
        self.errors += 1
        self.last_error = f"{type(error).__name__}: {error}"
        _log.error("%s", write_error(self._directory, error))
