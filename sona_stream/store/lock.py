"""One process per state folder: an advisory lock that the system releases when its holder dies."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from ..errors import StateError

__all__ = ["LOCK_NAME", "FolderLock"]

LOCK_NAME = "state.lock"
_LOCKED_BYTE = 1 << 30
"""Windows locks are mandatory: the locked byte lies beyond the pid, which others must be able to read."""


class FolderLock:
    """Holds ``<directory>/state.lock``; the file names the holder's pid. Not re-entrant."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / LOCK_NAME
        self._fd: int | None = None

    def acquire(self) -> None:
        """Raises StateError naming the folder and the holder's pid when another process (or store) has it."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StateError(
                f"the state folder {self._path.parent} cannot be written ({error.strerror}); make it writable "
                "or name another one in sona.state_dir"
            ) from error
        try:
            _lock(fd)
        except OSError as error:
            holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise StateError(
                f"the state folder {self._path.parent} is in use by process {holder}; stop that process or "
                "name another folder in sona.state_dir"
            ) from error
        self._fd = fd
        with contextlib.suppress(OSError):  # the pid only informs: what a full disk stops, the database tells
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode("ascii"))

    def release(self) -> None:
        """Give the folder back. The file stays: removing it would race with the next holder."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with contextlib.suppress(OSError):  # a full disk must not keep the lock
                os.ftruncate(fd, 0)
            os.close(fd)


if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int) -> None:
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(fd, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
