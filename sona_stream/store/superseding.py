"""Which remembered answer stands for which, among the rows of `episodes`.

What a newer answer superseded exists for undo, which makes it current again. Where the newer one expires, makes
room or is forgotten by its key, all of it goes along: what was replaced does not come back unasked. Where a person
or a tenant is forgotten, only their own goes along, and what others have said is current again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from ..episodes import Along, EpisodeEntry
from .episodes import entries, marks, slices

__all__ = ["inherit", "revive", "supersede", "with_superseded"]

_ALONG: Mapping[Along, str] = {
    "all": "",
    "own": "AND e.tenant = d.tenant AND e.user IS d.user AND (e.user IS NOT NULL OR e.key_id = d.key_id)",
    "none": "AND FALSE",
}


def supersede(connection: sqlite3.Connection, numbers: Iterable[int], by: int) -> None:
    """From now on `by` stands for these."""
    connection.executemany("UPDATE episodes SET superseded_by = ? WHERE number = ?", [(by, n) for n in numbers])


def inherit(connection: sqlite3.Connection, old: int, new: int) -> None:
    """What `old` superseded is superseded by `new`, and who superseded `old` supersedes `new`; where
    nobody did, `new` stays as it is.
    """
    connection.execute(
        "UPDATE episodes SET superseded_by = coalesce((SELECT superseded_by FROM episodes WHERE number = ?), "
        "superseded_by) WHERE number = ?",
        (old, new),
    )
    connection.execute("UPDATE episodes SET superseded_by = ? WHERE superseded_by = ?", (new, old))


def revive(connection: sqlite3.Connection, numbers: Sequence[int]) -> list[EpisodeEntry]:
    """What these superseded is as if they had never been. -> those that are current again"""
    leaving, returning = set(numbers), []
    ranked: list[tuple[int, int]] = []
    for some in slices(numbers):
        ranked += connection.execute(f"SELECT rank, number FROM episodes WHERE number IN ({marks(some)})", some)
    for _, number in sorted(ranked, reverse=True):  # who stands for another is newer: each row changes once
        rows = connection.execute(
            "UPDATE episodes SET superseded_by = (SELECT superseded_by FROM episodes WHERE number = ?1) "
            "WHERE superseded_by = ?1 RETURNING number, superseded_by",
            (number,),
        ).fetchall()
        returning += [row[0] for row in rows if row[1] is None]
    found = [entries(connection, "WHERE number = ?", number) for number in returning if number not in leaving]
    return [entry for one in found for entry in one]


def with_superseded(connection: sqlite3.Connection, numbers: Sequence[int], along: Along) -> list[int]:
    """These numbers, where there are such rows, and those that go along of what they superseded."""
    doomed: dict[int, None] = {}
    for some in slices(numbers):
        rows = connection.execute(
            f"WITH RECURSIVE doomed (number) AS (SELECT number FROM episodes WHERE number IN ({marks(some)}) "
            "UNION SELECT e.number FROM doomed JOIN episodes d USING (number) "
            f"JOIN episodes e ON e.superseded_by = d.number {_ALONG[along]}) "
            "SELECT number FROM doomed",
            some,
        )
        doomed |= dict.fromkeys(row[0] for row in rows)
    return list(doomed)
