"""Segments of episodes in backups: record by record, for a segment changes while it is served."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from . import episodes
from .files import DamagedFile
from .schema import DATABASE, EPISODES_SINCE, connect, format_of
from .segments import Segments, segment_name

__all__ = ["copy", "files", "named", "orphans", "problems", "renumber"]


def named(connection: sqlite3.Connection) -> set[str]:
    """Every episode that a row names, by what `copy` and `problems` call it."""
    if format_of(connection) < EPISODES_SINCE:
        return set()
    return {_name(number) for number in episodes.places(connection)}


def problems(connection: sqlite3.Connection, directory: Path) -> list[str]:
    """One sentence for every episode whose bytes are not what was written."""
    segments = Segments(directory)
    return [
        f"{_name(number)}: its record in {segment_name(place.segment)} is damaged or missing"
        for number, place in sorted(episodes.places(connection).items())
        if not segments.is_sound(place)
    ]


def orphans(connection: sqlite3.Connection, directory: Path) -> set[str]:
    """Segments that no row names."""
    live = {segment_name(number) for number in episodes.bytes_by_segment(connection)}
    return files(directory) - live


def files(directory: Path) -> set[str]:
    """Names of all segments."""
    return {segment_name(number) for number in Segments(directory).present()}


def copy(snapshot: sqlite3.Connection, directory: Path, stage: Path) -> dict[str, str]:
    """Every record that the snapshot names, at the same offset in the stage. -> name -> why it is not there

    What was copied before stays: a record never changes under its stamp, but for being erased.
    """
    if format_of(snapshot) < EPISODES_SINCE:
        return {}
    source, target = Segments(directory), Segments(stage)
    damaged = {}
    for number, place in sorted(episodes.places(snapshot).items()):
        if target.is_sound(place):
            continue
        try:
            data = source.raw(place)
        except DamagedFile as error:
            damaged[_name(number)] = f"{_name(number)}: {error}"
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
