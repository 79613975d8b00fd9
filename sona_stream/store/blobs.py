"""Small named pieces of state: ledgers, patterns, what was measured."""

from __future__ import annotations

import hashlib
import logging
import sqlite3

__all__ = ["get", "names"]

_log = logging.getLogger("sona_stream.store")


def get(connection: sqlite3.Connection, name: str) -> bytes | None:
    """None when there is none, or it is damaged (logged)."""
    row = connection.execute("SELECT data, sha256 FROM blobs WHERE name = ?", (name,)).fetchone()
    if row is None:
        return None
    if hashlib.sha256(row[0]).digest() != row[1]:
        _log.error("stored blob %r does not match its sha256", name)
        return None
    return bytes(row[0])


def names(connection: sqlite3.Connection, prefix: str) -> list[str]:
    """Of every blob whose name begins so, in order."""
    rows = connection.execute("SELECT name FROM blobs WHERE substr(name, 1, ?) = ?", (len(prefix), prefix))
    return sorted(row[0] for row in rows)
