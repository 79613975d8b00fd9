"""Reading from a state folder without opening it as its owner: for commands beside a running server.

Readers of a WAL database hinder no writer and see one consistent state; a file that a row names never changes.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from ..errors import NotFound, StateError
from ..lora import AdapterRecord, Capture
from . import adapters, captures
from .files import StateFiles
from .schema import DATABASE, MIGRATIONS, connect, format_of

__all__ = ["read_adapter", "read_adapter_heads", "read_blob", "read_captures", "read_versions"]


def read_blob(directory: Path, name: str) -> bytes | None:
    """What `Store.put_blob` kept under this name; None when there is no state or no such blob."""
    if not (Path(directory) / DATABASE).is_file():
        return None
    with _reading(directory) as connection:
        row = connection.execute("SELECT data FROM blobs WHERE name = ?", (name,)).fetchone()
    return None if row is None else bytes(row[0])


def read_versions(directory: Path) -> dict[str, tuple[int, list[int]]]:
    """Adapter key -> (version that is served, 0: none; kept versions, newest last). Raises StateError."""
    with _existing(directory) as connection:
        rows = connection.execute("SELECT key, version FROM adapters ORDER BY key, version").fetchall()
        served = dict(connection.execute("SELECT key, version FROM current_adapters").fetchall())
    found: dict[str, tuple[int, list[int]]] = {}
    for key, version in rows:
        found.setdefault(key, (served.get(key, 0), []))[1].append(version)
    return found


def read_adapter(directory: Path, key: str, version: int) -> AdapterRecord:
    """Raises NotFound when this version is not kept (any more), StateError when its file is damaged."""
    with _existing(directory) as connection:
        record = adapters.one_record(connection, StateFiles(Path(directory)), key, version)
        if record is not None:
            return record
        # A server may have pruned it between its row and its file.
        there = connection.execute(
            "SELECT 1 FROM adapters WHERE key = ? AND version = ?", (key, version)
        ).fetchone()
    if there is None:
        raise NotFound(f"adapter {key}@{version} is not kept")
    raise StateError(f"adapter {key}@{version} is damaged; look with `sona-stream state verify`")


def read_adapter_heads(directory: Path, *, tenant: str | None = None) -> list[tuple[AdapterRecord, int, bool]]:
    """(record without weights and moments, bytes of its file, whether it is served) of every version, by key, the
    newest last. ``tenant``: with its end users. Raises StateError.
    """
    with _existing(directory) as connection:
        served = dict(connection.execute("SELECT key, version FROM current_adapters").fetchall())
        found = adapters.heads(connection, tenant=tenant, described=True)
    return [(record, size, served.get(record.key) == record.version) for record, size in found]


def read_captures(directory: Path, key: str, *, limit: int) -> list[Capture]:
    """Judged answers kept under an adapter key, the newest `limit`, oldest first."""
    with _existing(directory) as connection:
        found = captures.newest(connection, StateFiles(Path(directory)), key, limit)
    return [capture for capture, _, _ in found]


@contextlib.contextmanager
def _existing(directory: Path) -> Iterator[sqlite3.Connection]:
    path = Path(directory) / DATABASE
    if not path.is_file():
        raise StateError(f"there is no state in {directory} ({DATABASE} is missing)")
    with _reading(directory) as connection:
        found, newest = format_of(connection), MIGRATIONS[-1].version
        if not 0 < found <= newest:
            raise StateError(
                f"the state in {directory} has format {found}, this version of sona-stream reads 1 to {newest}"
            )
        yield connection


@contextlib.contextmanager
def _reading(directory: Path) -> Iterator[sqlite3.Connection]:
    path = Path(directory) / DATABASE
    try:
        with contextlib.closing(connect(path, read_only=True)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise StateError(f"{path} cannot be read: {error}") from error
