"""Opening a state folder: lock, database, migrations, orphans."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from ..errors import StateError
from . import episodes
from .files import STAGING, StateFiles
from .lock import FolderLock
from .schema import DATABASE, Migration, connect, migrate
from .segments import Segments

__all__ = ["OpenFolder", "named_files", "open_folder"]

_log = logging.getLogger("sona_stream.store")


@dataclasses.dataclass(frozen=True, slots=True)
class OpenFolder:
    """A state folder that this process holds."""

    lock: FolderLock
    connection: sqlite3.Connection
    files: StateFiles
    segments: Segments
    secret: bytes
    """Keys the hashes by which retries are recognised; made with the folder."""


def open_folder(directory: Path, migrations: Sequence[Migration]) -> OpenFolder:
    """Create or open it. Raises StateError: not writable, held by another process, damaged, too new, not ours."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(
            f"the state folder {directory} cannot be made ({error.strerror}); name another one in sona.state_dir"
        ) from error
    lock = FolderLock(directory)
    lock.acquire()
    try:
        return _open_locked(directory, migrations, lock)
    except BaseException:
        lock.release()
        raise


def named_files(connection: sqlite3.Connection) -> dict[str, bytes]:
    """Every file that a row names -> its sha256."""
    rows = connection.execute("SELECT file, sha256 FROM adapters UNION SELECT file, sha256 FROM captures")
    return dict(rows.fetchall())


def _open_locked(directory: Path, migrations: Sequence[Migration], lock: FolderLock) -> OpenFolder:
    try:
        connection = connect(directory / DATABASE)
        try:
            before, now = migrate(connection, directory, migrations)
            if before not in (0, now):
                _log.warning("the state in %s was brought from format %d to %d", directory, before, now)
            secret = _secret(connection)
            files = StateFiles(directory)
            orphans = files.present() - named_files(connection).keys()
            files.remove(orphans)
            segments = Segments(directory)
            _recover_episodes(connection, segments, directory)
            for leftover in directory.glob(f"{STAGING}*"):
                shutil.rmtree(leftover)
            if orphans:
                _log.info("%d files that no row names were removed from %s", len(orphans), directory)
        except BaseException:
            connection.close()
            raise
    except sqlite3.DatabaseError as error:
        raise _cannot_open(directory, error) from error
    except OSError as error:
        raise StateError(f"the state folder {directory} cannot be used: {error}") from error
    return OpenFolder(lock, connection, files, segments, secret)


def _recover_episodes(connection: sqlite3.Connection, segments: Segments, directory: Path) -> None:
    """Bytes that no row names go, and rows whose bytes are not there."""
    rows = episodes.places(connection)
    lost = set(segments.recover(rows.values()))
    if lost:
        _log.error("%d episodes of %s are gone: their segment was cut or removed", len(lost), directory)
        episodes.delete(connection, [number for number, place in rows.items() if place in lost])


def _secret(connection: sqlite3.Connection) -> bytes:
    connection.execute("INSERT OR IGNORE INTO meta VALUES ('secret', ?)", (secrets.token_bytes(32),))
    row = connection.execute("SELECT value FROM meta WHERE name = 'secret'").fetchone()
    return bytes(row[0])


def _cannot_open(directory: Path, error: sqlite3.DatabaseError) -> StateError:
    text = str(error)
    if "malformed" in text or "not a database" in text:
        return StateError(
            f"{directory / DATABASE} is damaged ({text}); look with `sona-stream state verify`, "
            "go back with `sona-stream state restore`"
        )
    if "full" in text:
        return StateError(f"the disk of the state folder {directory} is full ({text}); free some space on it")
    if "readonly" in text or "unable to open" in text:
        return StateError(
            f"the state folder {directory} cannot be written ({text}); make it writable or name another one in "
            "sona.state_dir"
        )
    hint = "; is its disk full, or failing?" if "disk I/O" in text else ""  # no room for the log's index
    return StateError(f"the state in {directory} cannot be opened: {text}{hint}")
