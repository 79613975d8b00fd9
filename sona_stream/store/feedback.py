"""Rows of feedback: idempotent commits, outcomes, and what waits for one."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

from ..errors import FeedbackConflict
from ..events import AdapterRef, Feedback, FeedbackOutcome
from .privacy import content_digest, idempotency_digest, text_bytes, text_from

__all__ = ["commit", "latest", "outcome", "pending", "record"]

_SELECT = (
    "SELECT id, request_id, tenant, key_id, user, kind, quality, metric_name, value, correction, "
    "idempotency_key, created_at FROM feedback "
)


def commit(connection: sqlite3.Connection, said: Feedback, kept: Feedback, secret: bytes) -> Feedback | None:
    """Insert `kept` (`said` as storage allows). Returns the first feedback when this one repeats it, else None.

    Raises FeedbackConflict when its idempotency key (per tenant) or its id came with other content before.
    """
    once = idempotency_digest(said, secret)
    content = content_digest(kept, secret)
    earlier = connection.execute(
        "SELECT id, content_digest, idempotency_digest FROM feedback "
        "WHERE (tenant = ? AND idempotency_digest = ?) OR id = ?",
        (said.tenant, once, said.id),
    ).fetchone()
    if earlier is None:
        _insert(connection, kept, once, content)
        return None
    if earlier[1] != content or earlier[2] != once:
        what = f"feedback id {said.id!r}" if said.idempotency_key is None else "this idempotency key"
        raise FeedbackConflict(f"{what} was used before for other content")
    return _feedback(connection.execute(_SELECT + "WHERE id = ?", (earlier[0],)).fetchone())


def pending(connection: sqlite3.Connection) -> list[Feedback]:
    """Without an outcome, oldest first."""
    return [_feedback(row) for row in connection.execute(_SELECT + "WHERE status IS NULL ORDER BY seq")]


def latest(
    connection: sqlite3.Connection, tenant: str | None, limit: int, person: str | None = None
) -> list[Feedback]:
    """The newest `limit`, oldest first. `person`: what that person (`person_of`) said, no automatic scores."""
    kind, _, name = (person or "").partition(":")
    who = {"user": "user = ?2", "key": "user IS NULL AND key_id = ?2"}.get(kind)
    theirs = f" AND kind <> 'score' AND {who}" if who else ""
    rows = connection.execute(
        f"{_SELECT} WHERE (?1 IS NULL OR tenant = ?1){theirs} ORDER BY seq DESC LIMIT ?3",
        (tenant, text_bytes(name) if kind == "user" else name, limit),
    ).fetchall()
    return [_feedback(row) for row in reversed(rows)]


def record(connection: sqlite3.Connection, decided: FeedbackOutcome, *, keep_text: bool) -> bool:
    """Store an outcome; returns whether a correction's text was scrubbed. "queued" is none yet.

    A feedback that was forgotten or has expired meanwhile is left forgotten.
    """
    if decided.status == "queued":
        return False
    adapter = decided.adapter
    connection.execute(
        "UPDATE feedback SET status = ?, reason = ?, adapter_key = ?, adapter_version = ? WHERE id = ?",
        (
            decided.status,
            decided.reason,
            None if adapter is None else adapter.key,
            None if adapter is None else adapter.version,
            decided.feedback_id,
        ),
    )
    if keep_text:
        return False
    scrubbed = connection.execute(
        "UPDATE feedback SET correction = NULL WHERE id = ? AND correction IS NOT NULL", (decided.feedback_id,)
    )
    return scrubbed.rowcount > 0


def outcome(connection: sqlite3.Connection, feedback_id: str) -> FeedbackOutcome | None:
    """What `record` stored."""
    row = connection.execute(
        "SELECT status, reason, adapter_key, adapter_version FROM feedback WHERE id = ? AND status IS NOT NULL",
        (feedback_id,),
    ).fetchone()
    if row is None:
        return None
    adapter = None if row[2] is None else AdapterRef(key=row[2], version=row[3])
    return FeedbackOutcome(feedback_id=feedback_id, status=row[0], reason=row[1], adapter=adapter)


def _insert(connection: sqlite3.Connection, kept: Feedback, once: bytes | None, content: bytes) -> None:
    connection.execute(
        "INSERT INTO feedback (id, tenant, request_id, key_id, user, kind, quality, metric_name, value, "
        "correction, idempotency_key, idempotency_digest, content_digest, created_at, stored_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            kept.id,
            kept.tenant,
            kept.request_id,
            kept.key_id,
            text_bytes(kept.user),
            kept.kind,
            kept.quality,
            kept.metric_name,
            kept.value,
            text_bytes(kept.correction),
            text_bytes(kept.idempotency_key),
            once,
            content,
            kept.created_at,
            time.time(),
        ),
    )


def _feedback(row: tuple[Any, ...]) -> Feedback:
    return Feedback(
        id=row[0],
        request_id=row[1],
        tenant=row[2],
        key_id=row[3],
        user=text_from(row[4]),
        kind=row[5],
        quality=row[6],
        metric_name=row[7],
        value=row[8],
        correction=text_from(row[9]),
        idempotency_key=text_from(row[10]),
        created_at=row[11],
    )
