"""Rows of remembered episodes. Their bytes are in `segments`; what both mean is the memory's affair."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..episodes import Episode, EpisodeEntry, EpisodeText, NewEpisode, Place, Question, Scope, key_of, person_of
from ..lora import HiddenSpace
from .privacy import text_bytes, text_from
from .segments import Segments

__all__ = [
    "bytes_by_segment",
    "count",
    "delete",
    "entries",
    "find",
    "latest",
    "marks",
    "move",
    "places",
    "places_in",
    "put",
    "relocate",
    "select",
    "slices",
    "spaces",
    "stale",
    "use",
]

_PLACE = "segment, offset, bytes, stamp"
_ENTRY = (
    "number, rank, model, fingerprint, scope, tenant, user, key_id, kind, superseded_by, standing, static, "
    + _PLACE
)
_EPISODE = (
    "e.number, model, fingerprint, scope, tenant, user, key_id, request_id, feedback_id, kind, tokens, "
    "answer_tokens, bytes, created_at, promoted_by, promoted_at, superseded_by, uses, question, system, "
    "answer, body, stamp, stored_at"
)
_SELECT = f"SELECT {_EPISODE} FROM episodes e LEFT JOIN episode_texts t ON t.number = e.number"
_CHUNK = 500
"""Numbers in one statement: SQLite takes a limited count of parameters"""


def put(connection: sqlite3.Connection, segments: Segments, new: NewEpisode, *, keep_text: bool) -> EpisodeEntry:
    """Bytes first, row second."""
    episode, at = new.episode, segments.append(new.head, new.body)
    rank = _next_rank(connection) if new.rank is None else new.rank
    columns: dict[str, object] = {
        "rank": rank,
        "model": episode.model,
        "fingerprint": episode.fingerprint,
        "scope": episode.scope,
        "tenant": episode.tenant,
        "user": text_bytes(episode.user),
        "key_id": episode.key_id,
        "request_id": episode.request_id,
        "feedback_id": episode.feedback_id,
        "kind": episode.kind,
        "tokens": episode.tokens,
        "answer_tokens": episode.answer_tokens,
        "created_at": episode.created_at,
        "stored_at": episode.stored_at,
        "promoted_by": episode.promoted_by,
        "promoted_at": episode.promoted_at,
        "superseded_by": episode.superseded_by,
        "uses": episode.uses,
        "standing": new.standing,
        "static": new.static,
        "segment": at.segment,
        "offset": at.offset,
        "bytes": at.length,
        "stamp": at.stamp,
    }
    cursor = connection.execute(
        f"INSERT INTO episodes ({', '.join(columns)}) VALUES ({marks(columns)})", tuple(columns.values())
    )
    number = int(cursor.lastrowid or 0)
    if keep_text and episode.question is not None:
        _put_text(connection, number, episode.question, episode.text)
    connection.execute(
        "INSERT OR IGNORE INTO hidden_spaces VALUES (?, ?, ?, ?)",
        (episode.fingerprint, new.space.version, _f32(new.space.mean), _f32(new.space.spread)),
    )
    return entries(connection, "WHERE number = ?", number)[0]


def _put_text(connection: sqlite3.Connection, number: int, question: Question, text: EpisodeText | None) -> None:
    answer, body = (None, None) if text is None else (text_bytes(text.answer), text.body)
    connection.execute(
        "INSERT INTO episode_texts VALUES (?, ?, ?, ?, ?)",
        (number, text_bytes(question.text), text_bytes(question.system), answer, body),
    )


def entries(connection: sqlite3.Connection, where: str, *values: object) -> list[EpisodeEntry]:
    """What the index keeps of these rows."""
    rows = connection.execute(f"SELECT {_ENTRY} FROM episodes {where}", values)
    return [_entry(row) for row in rows]


def count(connection: sqlite3.Connection) -> int:
    """Of all rows."""
    return int(connection.execute("SELECT count(*) FROM episodes").fetchone()[0])


def find(connection: sqlite3.Connection, numbers: Sequence[int]) -> list[Episode]:
    """By number."""
    rows: list[tuple[Any, ...]] = []
    for some in slices(numbers):
        rows += connection.execute(f"{_SELECT} WHERE e.number IN ({marks(some)})", some).fetchall()
    return [_episode(row) for row in sorted(rows, key=lambda row: int(row[0]))]


def latest(
    connection: sqlite3.Connection,
    *,
    tenant: str | None,
    person: str | None,
    scope: Scope | None,
    model: str | None,
    feedback: str | None,
    limit: int,
) -> list[Episode]:
    """Newest first."""
    kind, _, name = (person or "").partition(":")
    asked = {
        "tenant = ?": tenant,
        "scope = ?": scope,
        "model = ?": model,
        "feedback_id = ?": feedback,
        "user = ?": text_bytes(name) if kind == "user" else None,
        "user IS NULL AND key_id = ?": name if kind == "key" else None,
    }
    given = {clause: value for clause, value in asked.items() if value is not None}
    where = " AND ".join(("TRUE", *given))
    rows = connection.execute(
        f"{_SELECT} WHERE {where} ORDER BY rank DESC LIMIT ?", (*given.values(), limit)
    ).fetchall()
    return [_episode(row) for row in rows]


def stale(
    connection: sqlite3.Connection, model: str, fingerprint: str, below: int | None, limit: int
) -> list[Episode]:
    """Of this model, made for another fingerprint; the highest number first."""
    rows = connection.execute(
        f"{_SELECT} WHERE model = ?1 AND fingerprint <> ?2 AND (?3 IS NULL OR e.number < ?3) "
        "ORDER BY e.number DESC LIMIT ?4",
        (model, fingerprint, below, limit),
    ).fetchall()
    return [_episode(row) for row in rows]


def move(connection: sqlite3.Connection, number: int, scope: Scope, by: str) -> EpisodeEntry | None:
    """Into another scope, as the newest there; None when there is no such row."""
    connection.execute(
        "UPDATE episodes SET scope = ?, rank = ?, promoted_by = ?, promoted_at = ? WHERE number = ?",
        (scope, _next_rank(connection), by, time.time(), number),
    )
    found = entries(connection, "WHERE number = ?", number)
    return found[0] if found else None


def select(connection: sqlite3.Connection, where: str, *values: object) -> list[int]:
    """Numbers of these rows."""
    return [row[0] for row in connection.execute(f"SELECT number FROM episodes WHERE {where}", values)]


def delete(connection: sqlite3.Connection, numbers: Sequence[int]) -> list[Place]:
    """-> whose bytes are to be overwritten once this is durable."""
    found: list[Place] = []
    for some in slices(numbers):  # before the first goes: rows that it superseded go with it
        rows = connection.execute(f"SELECT {_PLACE} FROM episodes WHERE number IN ({marks(some)})", some)
        found += [Place(*row) for row in rows]
    connection.executemany("DELETE FROM episodes WHERE number = ?", [(number,) for number in numbers])
    if found:
        connection.execute(
            "DELETE FROM hidden_spaces WHERE fingerprint NOT IN (SELECT DISTINCT fingerprint FROM episodes)"
        )
    return found


def use(connection: sqlite3.Connection, uses: Mapping[int, tuple[int, float]]) -> None:
    """Number -> (further uses, standing)."""
    connection.executemany(
        "UPDATE episodes SET uses = uses + ?, standing = ? WHERE number = ?",
        [(more, standing, number) for number, (more, standing) in uses.items()],
    )


def places(connection: sqlite3.Connection) -> dict[int, Place]:
    """Number -> place, of all rows."""
    return {row[0]: Place(*row[1:]) for row in connection.execute(f"SELECT number, {_PLACE} FROM episodes")}


def places_in(connection: sqlite3.Connection, segment: int) -> dict[int, Place]:
    """Number -> place, of the rows in one segment."""
    rows = connection.execute(
        f"SELECT number, {_PLACE} FROM episodes WHERE segment = ? ORDER BY offset", (segment,)
    )
    return {row[0]: Place(*row[1:]) for row in rows}


def bytes_by_segment(connection: sqlite3.Connection) -> dict[int, int]:
    """Segment -> bytes that rows name."""
    return dict(connection.execute("SELECT segment, sum(bytes) FROM episodes GROUP BY segment").fetchall())


def relocate(connection: sqlite3.Connection, moved: Mapping[int, Place]) -> None:
    """Name the new places."""
    connection.executemany(
        "UPDATE episodes SET segment = ?, offset = ?, bytes = ?, stamp = ? WHERE number = ?",
        [(*place, number) for number, place in moved.items()],
    )


def spaces(connection: sqlite3.Connection) -> list[tuple[str, HiddenSpace]]:
    """(fingerprint, space) of all that episodes were stored in."""
    found = []
    for fingerprint, version, *data in connection.execute("SELECT * FROM hidden_spaces"):
        mean, spread = (np.frombuffer(one, "<f4").astype(np.float32) for one in data)
        found.append((fingerprint, HiddenSpace(mean=mean, spread=spread, version=version)))
    return found


def slices(numbers: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """As many as one statement takes."""
    for start in range(0, len(numbers), _CHUNK):
        yield tuple(numbers[start : start + _CHUNK])


def marks(values: Collection[object]) -> str:
    """One for each, in a statement."""
    return ", ".join("?" * len(values))


def _next_rank(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT coalesce(max(rank), 0) + 1 FROM episodes").fetchone()[0])


def _f32(values: Any) -> bytes:
    return np.ascontiguousarray(values, dtype="<f4").tobytes()


def _entry(row: tuple[Any, ...]) -> EpisodeEntry:
    number, rank, model, fingerprint, scope, tenant, user, key_id, kind, superseded_by, standing, static = row[:12]
    person = person_of(text_from(user), key_id)
    return EpisodeEntry(
        number,
        rank,
        model,
        fingerprint,
        scope,
        tenant,
        person,
        kind,
        superseded_by,
        standing,
        static,
        Place(*row[12:]),
    )


def _episode(row: tuple[Any, ...]) -> Episode:
    question, system, answer, body = row[18:22]
    return Episode(
        key=key_of(row[0], row[22]),
        number=row[0],
        model=row[1],
        fingerprint=row[2],
        scope=row[3],
        tenant=row[4],
        user=text_from(row[5]),
        key_id=row[6],
        request_id=row[7],
        feedback_id=row[8],
        kind=row[9],
        tokens=row[10],
        answer_tokens=row[11],
        nbytes=row[12],
        created_at=row[13],
        stored_at=row[23],
        promoted_by=row[14],
        promoted_at=row[15],
        superseded_by=row[16],
        uses=row[17],
        question=None if question is None else Question(text_from(question) or "", text_from(system) or ""),
        text=None if answer is None else EpisodeText(answer=text_from(answer) or "", body=body),
    )
