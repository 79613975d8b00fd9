"""An open state folder with its threads: what the store's methods read and write through."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from sqlite3 import Connection
from typing import TypeVar

from . import adapters
from .folder import OpenFolder, open_folder
from .pending import Entry, Pending
from .readers import Readers
from .retention import Removed
from .schema import Migration
from .writer import Writer

__all__ = ["Session"]

T = TypeVar("T")

_FLUSH_S = 0.2


class Session:
    """From `open` to `close`; one a folder, on any machine that shares it."""

    def __init__(self, folder: OpenFolder, readers: Readers, writer: Writer) -> None:
        self._lock = folder.lock
        self._readers = readers
        self.writer = writer
        self.files = folder.files
        self.segments = folder.segments
        self.secret = folder.secret

    @classmethod
    async def open(
        cls,
        directory: Path,
        migrations: Sequence[Migration],
        pending: Pending,
        insert: Callable[[Connection, list[Entry]], None],
    ) -> Session:
        """Raises StateError as `folder.open_folder` does."""
        opening = asyncio.ensure_future(asyncio.to_thread(open_folder, directory, migrations))
        try:
            folder = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_give_up)
            raise
        writer = Writer(folder.connection, pending, insert, directory=directory, flush_s=_FLUSH_S)
        return cls(folder, Readers(directory), writer)

    async def close(self) -> None:
        """Writes what is queued, whatever happens to the calling task meanwhile."""
        await _whatever_happens(asyncio.to_thread(self._close))

    def _close(self) -> None:
        self._readers.close()
        self.writer.close()
        self._lock.release()

    async def read(self, read: Callable[[Connection], T]) -> T:
        """`read(connection)` on a reader thread."""
        return await self._readers.run(read)

    async def write(self, write: Callable[[Connection], T], after: Callable[[T], None] | None = None) -> T:
        """`write(connection)` in the next transaction; returns once it is durable and `after` has run."""
        future: Future[T] = self.writer.submit(write, after)
        return await asyncio.wrap_future(future)

    async def remove(self, remove: Callable[[Connection], Removed]) -> Removed:
        """A write that deletes rows: then their files go, and soon the log's memory of them."""

        def run(connection: Connection) -> Removed:
            removed = remove(connection)
            removed.files = adapters.unused(connection, removed.files)
            return removed

        def after(removed: Removed) -> None:
            self.erase_if(removed.any)
            self.files.remove(removed.files)
            self.segments.erase(removed.places)

        return await self.write(run, after)

    def erase_if(self, scrubbed: bool) -> None:
        """After a write that deleted something personal. Writer thread only."""
        if scrubbed:
            self.writer.erase_log()


def _give_up(opening: asyncio.Future[OpenFolder]) -> None:
    """Nobody waits for this folder any more: leave it as if it had not been opened."""
    if not opening.cancelled() and opening.exception() is None:
        folder = opening.result()
        folder.connection.close()
        folder.lock.release()


async def _whatever_happens(work: Awaitable[None]) -> None:
    """Finish `work` even while this task is being cancelled, then let the cancellation through."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
