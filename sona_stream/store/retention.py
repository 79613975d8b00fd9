"""What must leave the disk: by age, by a lowered `sona.storage`, or because a person asks."""

from __future__ import annotations

import dataclasses
import sqlite3
from pathlib import Path

from ..config.settings import Storage
from ..episodes import Along, Dropped, Place
from ..errors import StateError
from ..events import pupil
from . import adapters, episodes, superseding
from .privacy import text_bytes
from .schema import BACKUPS

__all__ = ["Removed", "enforce", "expire", "forget", "remove_backups"]

_BATCH = 500
_JUDGED_BY_OTHERS = (
    "(user IS NOT NULL AND EXISTS (SELECT 1 FROM episodes e WHERE e.request_id = trajectories.request_id "
    "AND e.tenant = trajectories.tenant AND e.user IS NOT trajectories.user))"
)
_NAMELESS = f"(row NOT IN (SELECT row FROM trajectory_texts) AND NOT {_JUDGED_BY_OTHERS})"
"""Whose text it is stays known as long as the text, or what others' judgements of it are remembered by: or nobody
could have that forgotten.
"""
_BARE = (
    f"user = CASE WHEN {_NAMELESS} THEN NULL ELSE user END, "
    "ids = NULL, embedding = NULL, prompt_ids = NULL, token_ids = NULL"
)
_HAS_FEATURES = (
    f"(ids IS NOT NULL OR embedding IS NOT NULL OR prompt_ids IS NOT NULL OR token_ids IS NOT NULL "
    f"OR (user IS NOT NULL AND {_NAMELESS}))"
)


@dataclasses.dataclass(slots=True)
class Removed:
    """What a pass removed or scrubbed. ``files`` may now be unused; ``more``: call again, it was only a slice."""

    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    files: list[str] = dataclasses.field(default_factory=list)
    episodes: Dropped = dataclasses.field(default_factory=lambda: Dropped([], []))
    places: list[Place] = dataclasses.field(default_factory=list)
    """Where their bytes are"""
    more: bool = False

    @property
    def any(self) -> bool:
        """Whether anything changed on disk."""
        return any(self.rows.values())

    def run(self, connection: sqlite3.Connection, what: str, statement: str, *values: object) -> None:
        """Execute one DELETE or UPDATE and count its rows."""
        count = connection.execute(statement, values).rowcount
        self.rows[what] = self.rows.get(what, 0) + max(0, count)

    def take_files(self, connection: sqlite3.Connection, what: str, statement: str, *values: object) -> None:
        """Execute one DELETE ... RETURNING file."""
        rows = connection.execute(statement, values).fetchall()
        self.rows[what] = self.rows.get(what, 0) + len(rows)
        self.files += [row[0] for row in rows]

    def take_episodes(
        self, connection: sqlite3.Connection, where: str, *values: object, along: Along = "all"
    ) -> None:
        """Delete these rows of `episodes`, with what goes along of what they superseded."""
        numbers = superseding.with_superseded(connection, episodes.select(connection, where, *values), along)
        returned = superseding.revive(connection, numbers)
        self.places += episodes.delete(connection, numbers)
        self.episodes = Dropped(self.episodes.numbers + numbers, self.episodes.returned + returned)
        self.rows["episodes"] = self.rows.get("episodes", 0) + len(numbers)


def expire(connection: sqlite3.Connection, *, features_before: float, text_before: float) -> Removed:
    """Delete what was stored before these times (time.time()), a bounded slice a call.

    The bare routing row goes when both its classes have expired, and no other's judgement of it is remembered.
    """
    out = Removed()
    old = "SELECT row FROM trajectories WHERE stored_at < ? "
    both = min(features_before, text_before)
    slice_ = f"LIMIT {_BATCH}"
    out.take_episodes(
        connection, f"number IN (SELECT number FROM episodes WHERE stored_at < ? {slice_})", features_before
    )
    gone = f"{old} AND NOT {_JUDGED_BY_OTHERS} {slice_}"
    out.run(connection, "trajectories", f"DELETE FROM trajectories WHERE row IN ({gone})", both)
    out.run(
        connection,
        "features",
        f"UPDATE trajectories SET {_BARE} WHERE row IN ({old} AND {_HAS_FEATURES} {slice_})",
        features_before,
    )
    out.run(
        connection,
        "names",
        f"DELETE FROM request_names WHERE row IN ({old} AND row IN (SELECT row FROM request_names) {slice_})",
        features_before,
    )
    out.run(
        connection,
        "texts",
        f"DELETE FROM trajectory_texts WHERE row IN ({old} AND row IN (SELECT row FROM trajectory_texts) {slice_})",
        text_before,
    )
    _expire_feedback(connection, out, features_before, text_before)
    out.take_files(
        connection,
        "captures",
        f"DELETE FROM captures WHERE seq IN (SELECT seq FROM captures WHERE stored_at < ? {slice_}) RETURNING file",
        features_before,
    )
    out.run(
        connection,
        "questions",
        f"DELETE FROM questions WHERE rowid IN (SELECT rowid FROM questions WHERE stored_at < ? {slice_})",
        features_before,
    )
    out.run(
        connection,
        "episode_texts",
        "DELETE FROM episode_texts WHERE number IN (SELECT e.number FROM episodes e JOIN episode_texts t "
        f"ON t.number = e.number WHERE e.stored_at < ? {slice_})",
        text_before,
    )
    out.more = any(count >= _BATCH for count in out.rows.values())
    return out


def _expire_feedback(
    connection: sqlite3.Connection, out: Removed, features_before: float, text_before: float
) -> None:
    out.run(
        connection,
        "feedback",
        f"DELETE FROM feedback WHERE seq IN (SELECT seq FROM feedback WHERE stored_at < ? LIMIT {_BATCH})",
        features_before,
    )
    out.run(
        connection,
        "corrections",
        "UPDATE feedback SET correction = NULL WHERE correction IS NOT NULL AND stored_at < ?",
        text_before,
    )


def enforce(connection: sqlite3.Connection, storage: Storage) -> Removed:
    """Remove what an earlier, wider `sona.storage` kept and this one does not."""
    out = Removed()
    if storage == "text":
        return out
    out.run(connection, "texts", "DELETE FROM trajectory_texts")
    out.run(connection, "episode_texts", "DELETE FROM episode_texts")
    waiting = "" if storage == "none" else " AND status IS NOT NULL"
    out.run(
        connection, "corrections", f"UPDATE feedback SET correction = NULL WHERE correction IS NOT NULL{waiting}"
    )
    if storage == "features":
        return out
    out.take_episodes(connection, "TRUE")
    out.run(connection, "features", f"UPDATE trajectories SET {_BARE} WHERE {_HAS_FEATURES}")
    out.run(connection, "names", "DELETE FROM request_names")
    out.run(
        connection,
        "feedback",
        "UPDATE feedback SET user = NULL, idempotency_key = NULL "
        "WHERE user IS NOT NULL OR idempotency_key IS NOT NULL",
    )
    out.run(connection, "patterns", "DELETE FROM blobs WHERE name LIKE 'routing/%'")  # made of embeddings
    out.take_files(connection, "captures", "DELETE FROM captures RETURNING file")
    out.run(connection, "questions", "DELETE FROM questions")
    return out


def forget(connection: sqlite3.Connection, tenant: str, user: str | None) -> Removed:
    """Delete every row of an end user or of a whole tenant (user None), with the adapters that are theirs alone.

    What others said about the person's requests goes, too, for it holds them: feedback, captures and remembered
    answers. What these had superseded is current again.
    """
    out = Removed()
    who = text_bytes(user)
    mine = "tenant = ?1 AND (?2 IS NULL OR user = ?2)"
    requests = f"SELECT request_id FROM trajectories WHERE {mine}"
    about_mine = f"tenant = ?1 AND (?2 IS NULL OR user = ?2 OR request_id IN ({requests}))"
    said = f"SELECT id FROM feedback WHERE {mine}"
    out.take_files(
        connection,
        "captures",
        f"DELETE FROM captures WHERE tenant = ?1 AND (?2 IS NULL OR user = ?2 OR request_id IN ({requests}) "
        f"OR feedback_id IN ({said})) RETURNING file",
        tenant,
        who,
    )
    out.run(
        connection,
        "feedback",
        f"DELETE FROM feedback WHERE {about_mine}",
        tenant,
        who,
    )
    out.take_episodes(connection, about_mine, tenant, who, along="none")  # all that is their own is among these
    out.run(connection, "trajectories", f"DELETE FROM trajectories WHERE {mine}", tenant, who)
    out.run(connection, "questions", f"DELETE FROM questions WHERE {mine}", tenant, who)
    out.rows["adapters"] = out.rows["blobs"] = 0
    for whose in _pupils(connection, tenant, user):
        out.take_files(connection, "captures", "DELETE FROM captures WHERE tenant = ?1 RETURNING file", whose)
        gone = adapters.delete_tenant(connection, whose)
        out.rows["adapters"] += len(gone)
        out.files += gone
        out.rows["blobs"] += adapters.delete_blobs(connection, whose)
    return out


def _pupils(connection: sqlite3.Connection, tenant: str, user: str | None) -> list[str]:
    """Whose lessons go: one end user's own, or the tenant's and all its end users'."""
    if user is not None:
        return [pupil(tenant, user)]
    names = [row[0] for row in connection.execute("SELECT DISTINCT key FROM adapters")]
    names += [row[0] for row in connection.execute("SELECT name FROM blobs WHERE name LIKE '%/%/%'")]
    known = {adapters.tenant_of(name) for name in names}
    known |= {row[0] for row in connection.execute("SELECT DISTINCT tenant FROM captures")}
    return [tenant, *sorted(one for one in known if one.startswith(f"{tenant}:"))]


def remove_backups(directory: Path, *, before: float | None = None) -> int:
    """Delete the copies that migrations and restores made: all, or those older than `before`. Raises StateError."""
    removed = 0
    for path in sorted((directory / BACKUPS).glob("state-*")):
        try:
            if before is None or path.stat().st_mtime < before:
                path.unlink(missing_ok=True)
                removed += 1
        except OSError as error:
            raise StateError(f"the old copy {path} cannot be removed: {error.strerror}") from error
    return removed
