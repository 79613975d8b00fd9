"""Reading connections on a few threads of their own. WAL lets them read while the writer commits."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ..errors import StateError
from .schema import DATABASE, connect

__all__ = ["Readers"]

T = TypeVar("T")


class Readers:
    """``await run(f)`` calls ``f(connection)`` off the event loop."""

    def __init__(self, directory: Path, *, threads: int = 2) -> None:
        self._directory = directory
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="sona-store-reader")
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[sqlite3.Connection] = []

    async def run(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Raises StateError when the database cannot be read."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._call, read)
        except sqlite3.Error as error:
            raise StateError(
                f"the state in {self._directory} cannot be read: {error}; look with `sona-stream state verify`"
            ) from error

    def close(self) -> None:
        """Waits for the reads that are under way. Blocks."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def _call(self, read: Callable[[sqlite3.Connection], T]) -> T:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = connect(self._directory / DATABASE, read_only=True)
            with self._lock:
                self._connections.append(connection)
        return read(connection)
