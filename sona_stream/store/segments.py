"""Segment files of episodes: records appended one after another, read through memory maps, erased in place.

episodes/<number>.seg   records, each of a header, a head (read to judge a candidate) and a body (token states)

The database's rows alone decide which records count: a crash between a record and its row leaves bytes that no row
names. At open the tail of such bytes is cut off, what lies in between is overwritten, and compaction gives the
space back. A stamp in both tells a row from a record that took another's place.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import secrets
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..episodes import Place
from .files import DamagedFile, sync_folder

__all__ = ["EPISODES", "SEGMENT_BYTES", "Record", "Segments", "segment_name"]

EPISODES = "episodes"
SEGMENT_BYTES = 64 << 20
_HEADER = struct.Struct("<4sIIIIIq")
"""magic, length of the whole record, length and CRC of the head, CRC of the body, version, stamp"""
_LIVE, _DEAD = b"EPI1", b"DEAD"
_VERSION = 1
_ALIGN = 8
_ZEROS = bytes(1 << 20)


def segment_name(number: int) -> str:
    """Path relative to the state folder."""
    return f"{EPISODES}/{number:08d}.seg"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One episode's bytes, still in the map."""

    head: memoryview
    body: memoryview
    head_crc: int
    body_crc: int

    def checked_head(self) -> bytes | None:
        """A copy, or None when it is not what was written."""
        head = bytes(self.head)
        return head if zlib.crc32(head) == self.head_crc else None

    def checked_body(self) -> memoryview | None:
        """In the map, or None when it is not what was written."""
        return self.body if zlib.crc32(self.body) == self.body_crc else None


class Segments:
    """All of one state folder. `read` from any thread; the rest from the one that writes. Calls block."""

    def __init__(self, directory: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._maps: dict[int, mmap.mmap] = {}
        self._lock = threading.Lock()
        self._ends: dict[int, int] = {}
        """Where the next record of each segment would begin."""

    # -- reading ----------------------------------------------------------------------------------------------

    def read(self, place: Place) -> Record | None:
        """None when the record is gone, or another is in its place. Nothing is read but the header."""
        view = self._view(place)
        if view is None:
            return None
        magic, length, head_length, head_crc, body_crc, version, stamp = _HEADER.unpack_from(view)
        sound = magic == _LIVE and length == place.length and version == _VERSION and stamp == place.stamp
        if not sound or head_length > length - _HEADER.size:
            return None
        split = _HEADER.size + head_length
        return Record(view[_HEADER.size : split], view[split:], head_crc, body_crc)

    def raw(self, place: Place) -> bytes:
        """The whole record. Raises DamagedFile when a byte of it is not what was written."""
        view = self._view(place)
        if view is None or not self.is_sound(place):
            raise DamagedFile(f"{segment_name(place.segment)}: the record at {place.offset} is damaged or missing")
        return bytes(view)

    def is_sound(self, place: Place) -> bool:
        """Whether every byte is what was written."""
        record = self.read(place)
        return record is not None and record.checked_head() is not None and record.checked_body() is not None

    def _view(self, place: Place) -> memoryview | None:
        end = place.offset + place.length
        if place.length < _HEADER.size:
            return None
        with self._lock:
            mapped = self._maps.get(place.segment)
            if mapped is None or len(mapped) < end:
                mapped = self._map(place.segment)
        return None if mapped is None or len(mapped) < end else memoryview(mapped)[place.offset : end]

    def _map(self, number: int) -> mmap.mmap | None:
        """Anew, for it has grown. The old map lives as long as somebody reads from it."""
        try:
            with open(self._directory / segment_name(number), "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # gone, or empty
            return None
        self._maps[number] = mapped
        return mapped

    # -- writing ----------------------------------------------------------------------------------------------

    def append(self, head: bytes, body: bytes) -> Place:
        """Durable when it returns; counts from the moment a row names it."""
        stamp = secrets.randbits(63)
        length = _HEADER.size + len(head) + len(body)
        length += -length % _ALIGN
        padded = body + bytes(length - _HEADER.size - len(head) - len(body))
        header = _HEADER.pack(_LIVE, length, len(head), zlib.crc32(head), zlib.crc32(padded), _VERSION, stamp)
        return self._append([header + head + padded], [stamp])[0]

    def move(self, places: Sequence[Place]) -> list[Place]:
        """Copies of these records at the end; -> where. Raises DamagedFile."""
        return self._append([self.raw(place) for place in places], [place.stamp for place in places])

    def _append(self, records: Sequence[bytes], stamps: Sequence[int]) -> list[Place]:
        if not records:
            return []
        number = max(self._ends, default=0)
        if not number or self._ends[number] >= self._segment_bytes:
            number = self._begin(number + 1)
        at, places = self._ends[number], list[Place]()
        for record, stamp in zip(records, stamps, strict=True):
            places.append(Place(number, at, len(record), stamp))
            at += len(record)
        with open(self._directory / segment_name(number), "r+b") as file:
            file.seek(self._ends[number])
            file.write(b"".join(records))
            file.flush()
            os.fsync(file.fileno())
        self._ends[number] = at
        return places

    def _begin(self, number: int) -> int:
        path = self._directory / segment_name(number)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        sync_folder(path.parent)
        self._ends[number] = 0
        return number

    def erase(self, places: Iterable[Place]) -> None:
        """Overwrite these records; what is gone already is no error."""
        by_segment: dict[int, list[tuple[int, int]]] = {}
        for place in places:
            by_segment.setdefault(place.segment, []).append((place.offset, place.length))
        for number, ranges in by_segment.items():
            self._overwrite(number, ranges)

    def _overwrite(self, number: int, ranges: Sequence[tuple[int, int]]) -> None:
        path = self._directory / segment_name(number)
        if not path.is_file():
            return
        with open(path, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            for offset, length in ranges:
                file.seek(offset + _HEADER.size)
                left = min(offset + length, size) - offset - _HEADER.size
                while left > 0:
                    left -= file.write(_ZEROS[: min(left, len(_ZEROS))])
            file.flush()
            os.fsync(file.fileno())  # the content first: a record marked dead is not looked at again
            for offset, length in ranges:
                file.seek(offset)
                file.write(_HEADER.pack(_DEAD, length, 0, 0, 0, _VERSION, 0))
            file.flush()
            os.fsync(file.fileno())

    def remove(self, numbers: Iterable[int]) -> None:
        """Delete whole segments, except the one that is being written."""
        current = max(self._ends, default=0)
        for number in set(numbers) - {current}:
            self._ends.pop(number, None)
            with self._lock:
                self._maps.pop(number, None)
            (self._directory / segment_name(number)).unlink(missing_ok=True)

    # -- the whole --------------------------------------------------------------------------------------------

    def sizes(self) -> dict[int, int]:
        """Segment -> bytes in use or to be given back, of those on disk."""
        return dict(self._ends)

    def present(self) -> dict[int, int]:
        """Segment -> bytes of its file; other files in the folder are not ours."""
        found = {}
        for path in (self._directory / EPISODES).glob("*.seg"):
            if path.stem.isdigit():
                found[int(path.stem)] = path.stat().st_size
        return found

    def recover(self, places: Iterable[Place]) -> list[Place]:
        """At open: files, tails and gaps that none of `places` covers go. -> those whose bytes are not there."""
        rows: dict[int, list[Place]] = {}
        for place in places:
            rows.setdefault(place.segment, []).append(place)
        lost, sizes = [], self.present()
        for number, size in sizes.items():
            kept = sorted(rows.pop(number, []), key=lambda place: place.offset)
            whole = [place for place in kept if place.offset + place.length <= size]
            lost += kept[len(whole) :]
            self._recover_one(number, size, whole)
        return lost + [place for places in rows.values() for place in places]

    def _recover_one(self, number: int, size: int, whole: Sequence[Place]) -> None:
        path = self._directory / segment_name(number)
        if not whole:
            path.unlink()
            return
        end = whole[-1].offset + whole[-1].length
        if size > end:
            os.truncate(path, end)
        self._ends[number] = end
        self._overwrite(number, list(self._undead(path, _gaps(whole))))

    def _undead(self, path: Path, gaps: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Of these ranges what is not marked dead yet."""
        with open(path, "rb") as file:
            for start, end in gaps:
                while end - start >= _HEADER.size:
                    file.seek(start)
                    magic, length, *_ = _HEADER.unpack(file.read(_HEADER.size))
                    if not _HEADER.size <= length <= end - start or magic not in (_LIVE, _DEAD):
                        length = end - start  # no record begins here: nobody can say where the next does
                        magic = b""
                    if magic != _DEAD:
                        yield start, length
                    start += length


def _gaps(whole: Sequence[Place]) -> Iterator[tuple[int, int]]:
    at = 0
    for place in whole:
        if place.offset > at:
            yield at, place.offset
        at = place.offset + place.length
