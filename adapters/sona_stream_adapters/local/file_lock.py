"""A lock between processes on one machine, released by the operating system when its holder dies."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["file_lock"]


def _try_lock(file: BinaryIO) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


@contextmanager
def file_lock(path: Path, *, on_wait: Callable[[], None], poll_s: float = 0.2) -> Iterator[None]:
    """Hold an exclusive lock on `path` (created when missing). While another process holds it, `on_wait` is called
    before each pause; what it raises ends the wait.
    """
    with path.open("ab") as file:
        while not _try_lock(file):
            on_wait()
            time.sleep(poll_s)
        yield  # closing the file releases the lock
