"""Reading one thing from a state folder without opening it as its owner: for commands beside a running server."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from ..errors import StateError
from .schema import DATABASE, connect

__all__ = ["read_blob"]


def read_blob(directory: Path, name: str) -> bytes | None:
    """What `Store.put_blob` kept under this name; None when there is no state or no such blob."""
    path = Path(directory) / DATABASE
    if not path.is_file():
        return None
    try:
        with contextlib.closing(connect(path, read_only=True)) as connection:
            row = connection.execute("SELECT data FROM blobs WHERE name = ?", (name,)).fetchone()
    except sqlite3.Error as error:
        raise StateError(f"{path} cannot be read: {error}") from error
    return None if row is None else bytes(row[0])
