"""Rows of what requests asked, without its text: what a correction after a restart is remembered by."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence

from ..episodes import KeptQuestion
from .privacy import text_bytes

__all__ = ["find", "put"]


def put(connection: sqlite3.Connection, kept: Sequence[KeptQuestion]) -> None:
    """The same request again replaces its row."""
    now = time.time()
    connection.executemany(
        "INSERT OR REPLACE INTO questions VALUES (?, ?, ?, ?, ?)",
        [(one.tenant, one.request_id, text_bytes(one.user), now, one.sketch) for one in kept],
    )


def find(connection: sqlite3.Connection, tenant: str, request_id: str) -> bytes | None:
    """The sketch of one request of this tenant."""
    row = connection.execute(
        "SELECT sketch FROM questions WHERE tenant = ? AND request_id = ?", (tenant, request_id)
    ).fetchone()
    return None if row is None else bytes(row[0])
