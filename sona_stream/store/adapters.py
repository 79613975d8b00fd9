"""Rows and files of adapter versions, and which version of each key is served."""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import StateError
from ..lora import AdapterRecord, LoraWeights, LowRank
from .files import DamagedFile, StateFiles, StoredFile
from .tensors import moments_from, scaling_of, tensors_from, weights_from

__all__ = [
    "all_records",
    "current",
    "delete_blobs",
    "delete_tenant",
    "heads",
    "one_record",
    "prune",
    "put",
    "rungs",
    "set_current",
    "tenant_of",
    "unused",
]

_log = logging.getLogger("sona_stream.store")
_SELECT = (
    "SELECT key, version, parent, fingerprint, scaling, status, reason, metrics, feedback_ids, created_at, file, "
    "sha256 FROM adapters "
)


def tenant_of(key: str) -> str:
    """The tenant in ``model/tenant/group``; a model's name may itself hold slashes."""
    parts = key.rsplit("/", 2)
    if len(parts) != 3:
        raise StateError(f"adapter key {key!r} is not of the form model/tenant/group")
    return parts[1]


def put(connection: sqlite3.Connection, record: AdapterRecord, file: StoredFile) -> list[str]:
    """The row of a file that is written. Returns the file that the row named before, if that changed."""
    before = connection.execute(
        "SELECT file FROM adapters WHERE key = ? AND version = ?", (record.key, record.version)
    ).fetchone()
    name, digest, size = file
    connection.execute(
        "INSERT OR REPLACE INTO adapters VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            record.key,
            record.version,
            tenant_of(record.key),
            record.parent,
            record.fingerprint,
            json.dumps(scaling_of(record.weights)),
            record.status,
            record.reason,
            json.dumps(dict(record.metrics), default=float),
            json.dumps(record.feedback_ids),
            record.created_at,
            name,
            digest,
            size,
        ),
    )
    return [before[0]] if before and before[0] != name else []


def one_record(connection: sqlite3.Connection, files: StateFiles, key: str, version: int) -> AdapterRecord | None:
    """None when there is no such version, or its file is damaged (logged)."""
    row = connection.execute(_SELECT + "WHERE key = ? AND version = ?", (key, version)).fetchone()
    return None if row is None else _intact(files, row)


def all_records(connection: sqlite3.Connection, files: StateFiles, key: str | None) -> list[AdapterRecord]:
    """By key, newest version last; damaged ones are left out (logged)."""
    rows = connection.execute(_SELECT + "WHERE ?1 IS NULL OR key = ?1 ORDER BY key, version", (key,)).fetchall()
    records = (_intact(files, row) for row in rows)
    return [record for record in records if record is not None]


def heads(
    connection: sqlite3.Connection, *, tenant: str | None = None, described: bool = False
) -> list[tuple[AdapterRecord, int]]:
    """(version without weights, bytes of its file) by key, the newest last; no file is looked at. ``tenant``: with
    its end users; ``described``: with metrics and feedback ids, which takes ten times as long.
    """
    told = "metrics, feedback_ids" if described else "'{}', '[]'"
    rows = connection.execute(
        f"SELECT key, version, parent, fingerprint, status, reason, created_at, bytes, {told} FROM adapters "
        "WHERE ?1 IS NULL OR tenant = ?1 OR substr(tenant, 1, length(?1) + 1) = ?1 || ':' ORDER BY key, version",
        (tenant,),
    )
    none = np.zeros((0, 0), np.float32)
    bare = LoraWeights(LowRank(none, none))
    return [
        (
            AdapterRecord(
                key=key,
                version=version,
                parent=parent,
                fingerprint=fingerprint,
                weights=bare,
                status=status,
                reason=reason,
                metrics=json.loads(metrics) if described else {},
                feedback_ids=tuple(json.loads(feedback_ids)) if described else (),
                created_at=created_at,
            ),
            size,
        )
        for key, version, parent, fingerprint, status, reason, created_at, size, metrics, feedback_ids in rows
    ]


def current(connection: sqlite3.Connection, files: StateFiles) -> dict[str, int]:
    """Key -> version to serve. A damaged version gives way to the newest intact published one before it, or to
    the base model (0); the reason is logged.
    """
    pointers = connection.execute("SELECT key, version FROM current_adapters ORDER BY key").fetchall()
    return {key: _serviceable(connection, files, key, version) for key, version in pointers}


def set_current(connection: sqlite3.Connection, key: str, version: int, reason: str) -> None:
    """Raises StateError for a version that is not there; 0 is the base model."""
    tenant_of(key)
    known = connection.execute("SELECT 1 FROM adapters WHERE key = ? AND version = ?", (key, version)).fetchone()
    if version != 0 and known is None:
        raise StateError(f"adapter {key} has no version {version}")
    connection.execute(
        "INSERT OR REPLACE INTO current_adapters VALUES (?, ?, ?, ?)", (key, version, reason, time.time())
    )


def prune(connection: sqlite3.Connection, key: str, keep: int, older: int = 0, besides: int = 0) -> list[str]:
    """Delete all but the newest `keep` versions, the `rungs` of those before them, the served one and `besides`;
    returns files perhaps unused now.
    """
    rows = connection.execute(
        "SELECT version, status, fingerprint FROM adapters WHERE key = ? ORDER BY version DESC", (key,)
    ).fetchall()
    before = [one for one, status, made_for in rows[keep:] if status == "published" and made_for == rows[0][2]]
    stay = rungs(before, rows[0][0], keep, older) if before else set()
    gone = connection.execute(
        "DELETE FROM adapters WHERE key = ?1 AND version IN (SELECT value FROM json_each(?2)) "
        "AND version NOT IN (SELECT version FROM current_adapters WHERE key = ?1) RETURNING file",
        (key, json.dumps([one for one, _, _ in rows[keep:] if one not in stay and one != besides])),
    )
    return [row[0] for row in gone.fetchall()]


def rungs(versions: Iterable[int], newest: int, keep: int, most: int) -> set[int]:
    """The oldest of each doubling of the distance from `newest`, the first of which begins at `keep`, and the last
    of `most` has no end. In time it gets to the next rung, and is the oldest there or gives way.
    """
    found: dict[int, int] = {}
    for version in sorted(versions):
        rung = ((newest - version) // max(keep, 1)).bit_length()
        found.setdefault(min(rung, most), version)
    return {version for rung, version in found.items() if rung}


def delete_tenant(connection: sqlite3.Connection, tenant: str) -> list[str]:
    """Delete every version of a tenant's keys; returns files that may now be unused."""
    rows = connection.execute("DELETE FROM adapters WHERE tenant = ? RETURNING key, file", (tenant,)).fetchall()
    keys = connection.execute("SELECT key FROM current_adapters").fetchall()
    connection.executemany(
        "DELETE FROM current_adapters WHERE key = ?", [row for row in keys if tenant_of(row[0]) == tenant]
    )
    return [row[1] for row in rows]


def delete_blobs(connection: sqlite3.Connection, tenant: str) -> int:
    """Delete the blobs named as a tenant's keys are (``.../tenant/group``): ledgers, patterns. -> how many."""
    rows = connection.execute("SELECT name FROM blobs WHERE name LIKE '%/%/%'").fetchall()
    names = [row for row in rows if tenant_of(row[0]) == tenant]
    connection.executemany("DELETE FROM blobs WHERE name = ?", names)
    return len(names)


def unused(connection: sqlite3.Connection, names: list[str]) -> list[str]:
    """Those of these files that no row of either kind names any more."""
    return [
        name
        for name in names
        if connection.execute(
            "SELECT 1 WHERE EXISTS (SELECT 1 FROM captures WHERE file = ?1) "
            "OR EXISTS (SELECT 1 FROM adapters WHERE file = ?1)",
            (name,),
        ).fetchone()
        is None
    ]


def _serviceable(connection: sqlite3.Connection, files: StateFiles, key: str, version: int) -> int:
    candidates = connection.execute(
        _SELECT
        + "WHERE key = ?1 AND (version = ?2 OR (version < ?2 AND status = 'published')) ORDER BY version DESC",
        (key, version),
    ).fetchall()
    for row in candidates:
        if _intact(files, row) is not None:
            if row[1] != version:
                _log.error("adapter %s: version %d is damaged, version %d is served", key, version, row[1])
            return int(row[1])
    if version != 0:
        _log.error("adapter %s: no version up to %d is intact, the base model is served", key, version)
    return 0


def _intact(files: StateFiles, row: tuple[Any, ...]) -> AdapterRecord | None:
    try:
        tensors = tensors_from(files.read(row[10], row[11]), row[10])
        weights = weights_from(tensors, json.loads(row[4]))
    except (DamagedFile, KeyError) as error:
        _log.error("adapter %s@%d cannot be read: %s", row[0], row[1], error)
        return None
    return AdapterRecord(
        key=row[0],
        version=row[1],
        parent=row[2],
        fingerprint=row[3],
        weights=weights,
        moments=moments_from(tensors),
        status=row[5],
        reason=row[6],
        metrics=json.loads(row[7]),
        feedback_ids=tuple(json.loads(row[8])),
        created_at=row[9],
    )
