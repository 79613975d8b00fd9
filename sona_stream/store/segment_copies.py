"""Segments of episodes in backups: record by record, for a segment changes while it is served."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from ..episodes import Place
from . import episodes
from .files import DamagedFile
from .schema import DATABASE, EPISODES_SINCE, connect, format_of
from .segments import Segments, segment_name

__all__ = ["copy", "files", "named", "orphans", "problems", "renumber"]


def named(connection: sqlite3.Connection) -> set[tuple[int, Place]]:
    """Every episode with its place: one that compaction moves is another."""
    if format_of(connection) < EPISODES_SINCE:
        return set()
    return set(episodes.places(connection).items())


def problems(connection: sqlite3.Connection, directory: Path) -> list[str]:
    """One sentence for every episode whose bytes are not what was written, and whose row says so afterwards, too:
    a server may have moved or dropped it meanwhile.
    """
    segments = Segments(directory)
    found = [one for one in sorted(named(connection)) if not segments.is_sound(one[1])]
    still = named(connection) if found else set()
    return [
        f"{_name(number)}: its record in {segment_name(place.segment)} is damaged or missing"
        for number, place in found
        if (number, place) in still
    ]


def orphans(connection: sqlite3.Connection, directory: Path) -> set[str]:
    """Segments that no row names."""
    present = files(directory)
    return present - {segment_name(number) for number in episodes.bytes_by_segment(connection)}


def files(directory: Path) -> set[str]:
    """Names of all segments."""
    return {segment_name(number) for number in Segments(directory).present()}


def copy(snapshot: sqlite3.Connection, directory: Path, stage: Path) -> dict[tuple[int, Place], str]:
    """Every record that the snapshot names, at the same offset in the stage. -> why some are not there

    What was copied before for an older snapshot stays as far as this one names it, too: a record never changes
    under its stamp, but for being erased.
    """
    if format_of(snapshot) < EPISODES_SINCE:
        return {}
    source, target, wanted = Segments(directory), Segments(stage), sorted(named(snapshot))
    target.recover(place for _, place in wanted)
    damaged = {}
    for number, place in wanted:
        if target.is_sound(place):
            continue
        try:
            data = source.raw(place)
        except DamagedFile as error:
            damaged[number, place] = f"{_name(number)}: {error}"
            continue
        path = stage / segment_name(place.segment)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            file.seek(place.offset)
            file.write(data)
    return damaged


def renumber(stage: Path, directory: Path) -> None:
    """Give the stage's segments numbers that the folder it goes to has not: nothing is overwritten there."""
    highest = max(Segments(directory).present(), default=0)
    numbers = sorted(Segments(stage).present(), reverse=True)
    if not (highest and numbers):
        return
    for number in numbers:
        (stage / segment_name(number)).rename(stage / segment_name(number + highest))
    with contextlib.closing(connect(stage / DATABASE)) as connection:
        connection.execute("UPDATE episodes SET segment = segment + ?", (highest,))


def _name(number: int) -> str:
    return f"episode {number}"
