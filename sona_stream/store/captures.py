"""Rows and files of judged answers kept for replay."""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Collection
from typing import Any

from ..lora import Capture
from ..storing import CaptureHead
from .adapters import tenant_of
from .files import DamagedFile, StateFiles, StoredFile
from .tensors import capture_from, tensors_from

__all__ = ["drop", "newest", "newest_of", "put"]

_log = logging.getLogger("sona_stream.store")


def put(
    connection: sqlite3.Connection,
    key: str,
    capture: Capture,
    advantage: float,
    feedback_id: str,
    file: StoredFile,
    *,
    capacity: int,
) -> list[str]:
    """The row of a file that is written; beyond `capacity` rows a key the oldest go. Returns the files that may now
    be unused.

    An answer that is kept already, here or under another key, gets no younger, and stays the same person's.
    """
    tenant = tenant_of(key)
    name, digest, size = file
    facts = {
        "fingerprint": capture.fingerprint,
        "adapter_key": capture.adapter_key,
        "temperature": capture.temperature,
        "handle": capture.handle,
    }
    since, user = connection.execute(
        "SELECT min(stored_at), max(user) FROM captures "
        "WHERE file = ? AND tenant = ? AND request_id = ? AND feedback_id = ?",
        (name, tenant, capture.request_id, feedback_id),
    ).fetchone()
    replaced = connection.execute(
        "DELETE FROM captures WHERE key = ? AND request_id = ? AND feedback_id = ? RETURNING file",
        (key, capture.request_id, feedback_id),
    ).fetchall()
    connection.execute(
        "INSERT INTO captures (key, tenant, user, request_id, feedback_id, advantage, facts, stored_at, file, "
        "sha256, bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            key,
            tenant,
            user if user is not None else _user(connection, tenant, capture.request_id, feedback_id),
            capture.request_id,
            feedback_id,
            float(advantage),
            json.dumps(facts, default=float),
            time.time() if since is None else since,
            name,
            digest,
            size,
        ),
    )
    expired = connection.execute(
        "DELETE FROM captures WHERE key = ?1 AND seq <= "
        "(SELECT seq FROM captures WHERE key = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2) RETURNING file",
        (key, capacity),
    ).fetchall()
    return [row[0] for row in (*replaced, *expired)]


def drop(connection: sqlite3.Connection, key: str, feedback_id: str) -> list[str]:
    """Of either; empty: of none. Returns files that may now be unused."""
    rows = connection.execute(
        "DELETE FROM captures WHERE (?1 != '' AND key = ?1) OR (?2 != '' AND feedback_id = ?2) RETURNING file",
        (key, feedback_id),
    ).fetchall()
    return [row[0] for row in rows]


def newest(
    connection: sqlite3.Connection, files: StateFiles, key: str, limit: int
) -> list[tuple[Capture, float, str]]:
    """The newest `limit`, oldest first; damaged ones are left out (logged)."""
    rows = connection.execute(
        "SELECT request_id, facts, advantage, feedback_id, file, sha256 FROM captures WHERE key = ? "
        "ORDER BY seq DESC LIMIT ?",
        (key, limit),
    ).fetchall()
    found = []
    for request_id, facts, advantage, feedback_id, file, digest in reversed(rows):
        capture = _read(files, key, request_id, json.loads(facts), file, digest)
        if capture is not None:
            found.append((capture, advantage, feedback_id))
    return found


def newest_of(
    connection: sqlite3.Connection,
    files: StateFiles,
    keys: Collection[str],
    wanted: Callable[[CaptureHead], bool],
    limit: int,
) -> list[tuple[CaptureHead, Capture, float]]:
    """See `Store.newest_captures`; only files of what is wanted are read, damaged ones are left out (logged)."""
    rows = connection.execute(
        "SELECT seq, key, feedback_id, facts, stored_at, request_id, advantage, file, sha256 FROM captures "
        "WHERE key IN (SELECT value FROM json_each(?)) ORDER BY seq DESC",
        (json.dumps(list(keys)),),
    )
    found: list[tuple[CaptureHead, Capture, float]] = []
    for seq, key, feedback_id, told, stored_at, request_id, advantage, file, digest in rows:
        if len(found) == limit:
            break
        facts = json.loads(told)
        head = CaptureHead(seq, key, feedback_id, facts.get("fingerprint", ""), stored_at)
        capture = _read(files, key, request_id, facts, file, digest) if wanted(head) else None
        if capture is not None:
            found.append((head, capture, advantage))
    return found[::-1]


def _read(
    files: StateFiles, key: str, request_id: str, facts: dict[str, Any], file: str, digest: bytes
) -> Capture | None:
    """None: it is damaged (logged)."""
    try:
        return capture_from(tensors_from(files.read(file, digest), file), request_id, facts)
    except (DamagedFile, KeyError) as error:
        _log.error("a capture of adapter %s cannot be read: %s", key, error)
        return None


def _user(connection: sqlite3.Connection, tenant: str, request_id: str, feedback_id: str) -> bytes | None:
    """Whose answer this was: the end user of the request, else of the feedback; needed to forget a person."""
    row = connection.execute(
        "SELECT coalesce((SELECT user FROM trajectories WHERE tenant = ?1 AND request_id = ?2), "
        "(SELECT user FROM feedback WHERE tenant = ?1 AND id = ?3))",
        (tenant, request_id, feedback_id),
    ).fetchone()
    user: bytes | None = row[0]
    return user
