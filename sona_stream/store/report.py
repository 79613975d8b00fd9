"""What a state folder holds and whether it is sound."""

from __future__ import annotations

import dataclasses
import sqlite3
from pathlib import Path

__all__ = ["Report", "rows_of", "stats_of"]

_TABLES = ("trajectories", "trajectory_texts", "feedback", "adapters", "captures", "blobs", "episodes")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The answer of `maintenance.backup`, `restore` and `verify`."""

    path: Path
    format: int
    rows: dict[str, int]
    files: int
    """Adapter and capture files that rows name"""
    problems: tuple[str, ...] = ()
    """What is damaged or missing, one sentence each"""
    orphans: tuple[str, ...] = ()
    """Files that no row names: harmless, removed when the folder is opened next"""

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.problems

    def __str__(self) -> str:
        rows = ", ".join(f"{count} {table}" for table, count in self.rows.items())
        lines = [f"{self.path}: format {self.format}, {self.files} tensor files, {rows or 'rows not counted'}"]
        lines += [f"damaged: {problem}" for problem in self.problems]
        lines += [f"orphan (removed at the next start): {name}" for name in self.orphans]
        return "\n".join([*lines, "sound" if self.ok else f"{len(self.problems)} problems"])


def stats_of(connection: sqlite3.Connection, directory: Path) -> dict[str, object]:
    """{"rows": {table: n}, "bytes": {"database": n, "files": n}, "feedback_pending": n}"""
    pending = connection.execute("SELECT count(*) FROM feedback WHERE status IS NULL").fetchone()[0]
    tensors = connection.execute(
        "SELECT coalesce(sum(bytes), 0) FROM "
        "(SELECT file, bytes FROM adapters UNION SELECT file, bytes FROM captures)"
    ).fetchone()[0]
    database = sum(path.stat().st_size for path in directory.glob("state.sqlite3*"))
    return {
        "rows": rows_of(connection),
        "bytes": {"database": database, "files": tensors},
        "feedback_pending": pending,
    }


def rows_of(connection: sqlite3.Connection) -> dict[str, int]:
    """Rows of each table."""
    return {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in _TABLES}
