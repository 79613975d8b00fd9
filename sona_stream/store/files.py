"""Tensor files beside the database: written whole or not at all, named by content, checked when read.

A file's name ends in its hash, so a name never changes its content: the database row alone decides which file
counts, and a crash at any moment leaves at worst a file that no row names (an orphan, removed at open).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import StateError

__all__ = [
    "FOLDERS",
    "STAGING",
    "TEMPORARY",
    "DamagedFile",
    "StateFiles",
    "StoredFile",
    "sync_folder",
    "write_whole",
]

FOLDERS = ("adapters", "captures")
TEMPORARY = ".tmp"
STAGING = ".sona-state-"
"""How folders begin in which a backup or restore is prepared."""

StoredFile = tuple[str, bytes, int]
"""(path relative to the state folder with "/" as separator, sha256, size in bytes)"""


class DamagedFile(StateError):
    """A file that a row names is missing, or is not the one that was written."""


def sync_folder(path: Path) -> None:
    """Make a rename inside `path` survive a power cut, where the platform lets folders be synced."""
    if os.name != "nt":
        _sync(path, os.O_RDONLY)


def write_whole(path: Path, data: bytes) -> None:
    """Write under a temporary name, rename, fsync: readers see all of it or nothing new, and it is durable when it
    returns. Before that a power cut may leave the name with less, so the name must not count yet.

    The rename comes before the fsync since a journalling file system then writes both with one commit.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = written = path.with_name(path.name + TEMPORARY)
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        written = temporary.replace(path)
        _sync(written, os.O_RDWR)
        sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):  # the first error is the one to report
            written.unlink()
        raise


def _sync(path: Path, how: int) -> None:
    fd = os.open(path, how)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class StateFiles:
    """The `adapters/` and `captures/` folders of one state folder. Calls block: never on the event loop."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, stem: str, data: bytes) -> StoredFile:
        """Store `data` as ``<stem>.<hash>.safetensors``; the same content is written once."""
        digest = hashlib.sha256(data).digest()
        name = f"{stem}.{digest.hex()[:16]}.safetensors"
        path = self._directory / name
        if not self._holds(path, digest, len(data)):
            write_whole(path, data)
        return name, digest, len(data)

    def has(self, file: StoredFile) -> bool:
        """Whether what `write` returned is still there."""
        path = self._directory / file[0]
        return path.is_file() and path.stat().st_size == file[2]

    @staticmethod
    def _holds(path: Path, digest: bytes, size: int) -> bool:
        return path.is_file() and path.stat().st_size == size and _sha256(path.read_bytes()) == digest

    def read(self, name: str, digest: bytes) -> bytes:
        """Raises DamagedFile when it is gone or its content is not what the row's hash says."""
        try:
            data = (self._directory / name).read_bytes()
        except OSError as error:
            raise DamagedFile(f"{name}: {error.strerror}") from error
        if _sha256(data) != digest:
            raise DamagedFile(f"{name}: content does not match its sha256")
        return data

    def remove(self, names: Iterable[str]) -> None:
        """Delete these files; what is gone already is no error."""
        for name in names:
            (self._directory / name).unlink(missing_ok=True)

    def present(self) -> set[str]:
        """Names of all files in both folders, half-written ones included."""
        return {
            path.relative_to(self._directory).as_posix()
            for folder in FOLDERS
            for path in (self._directory / folder).rglob("*")
            if path.is_file()
        }


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
