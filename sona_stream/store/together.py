"""Writes that become durable in one transaction: captures, adapters, what is served, blobs, outcomes."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from sqlite3 import Connection

from ..config.settings import SonaSettings
from ..events import FeedbackOutcome
from ..lora import F32, AdapterRecord, Capture, LoraWeights
from . import adapters, captures, feedback
from .files import StateFiles, StoredFile
from .session import Session
from .tensors import adapter_bytes, adapter_stem, capture_bytes, capture_stem

__all__ = ["SqliteWrites"]


class _File:
    """One that is written when it is first asked for, and again where it has gone since. Writer thread only."""

    def __init__(self, files: StateFiles, stem: str, make: Callable[[], bytes]) -> None:
        self._files, self._stem, self._make = files, stem, make
        self.written: StoredFile | None = None

    def write(self) -> StoredFile:
        if self.written is None or not self._files.has(self.written):
            self.written = self._files.write(self._stem, self._make())
        return self.written


class SqliteWrites:
    """See `protocols.Writes`. ``ahead``: files are written as soon as they are known, not first by `commit`."""

    def __init__(
        self, session: Session, settings: SonaSettings, settled: Callable[[str], object], *, ahead: bool
    ) -> None:
        """``settled``: is told of every feedback whose outcome is durable."""
        self._session, self._settings, self._settled, self._ahead = session, settings, settled, ahead
        self._steps: list[Callable[[Connection], Sequence[str]]] = []
        """Each returns the files that no row may name any more."""
        self._outcomes: list[FeedbackOutcome] = []
        self._expected: dict[tuple[str, int, int, int], _File] = {}

    def put_capture(self, key: str, capture: Capture, advantage: float, *, feedback_id: str) -> None:
        """Keep a judged answer for replay: the newest `sona.learner.replay_capacity` a key."""
        if self._settings.storage == "none":
            return
        capacity = self._settings.learner.replay_capacity
        file = self._file(capture_stem(), functools.partial(capture_bytes, capture))
        self._steps.append(
            lambda c: captures.put(c, key, capture, advantage, feedback_id, file.write(), capacity=capacity)
        )

    def drop_captures(self, *, key: str = "", feedback_id: str = "") -> None:
        """All that is kept under this key, all that came with this feedback; their files go with the commit."""
        self._steps.append(lambda c: captures.drop(c, key, feedback_id))

    def expect_adapter(self, key: str, version: int, weights: LoraWeights, moments: Mapping[str, F32]) -> None:
        """Its file may be written while it is still judged; without a `put_adapter` it goes with the commit."""
        made = functools.partial(adapter_bytes, weights, moments)
        self._expected[key, version, id(weights), id(moments)] = self._file(adapter_stem(key, version), made)

    def put_adapter(self, record: AdapterRecord) -> None:
        """The file first, then the row. The same version again replaces its row."""
        expected = (record.key, record.version, id(record.weights), id(record.moments))
        if expected not in self._expected:
            self.expect_adapter(record.key, record.version, record.weights, record.moments)
        file = self._expected.pop(expected)
        self._steps.append(lambda c: adapters.put(c, record, file.write()))

    def set_current(self, key: str, version: int, *, reason: str) -> None:
        """`commit` raises StateError for a version that is not there; 0 is the base model."""

        def point(connection: Connection) -> Sequence[str]:
            adapters.set_current(connection, key, version, reason)
            return ()

        self._steps.append(point)

    def prune_adapters(self, key: str, *, keep: int, older: int = 0, besides: int = 0) -> None:
        """Keep the newest `keep` versions, `older` ones from before them, the served one, and `besides`."""
        self._steps.append(lambda c: adapters.prune(c, key, keep, older, besides))

    def put_blob(self, name: str, data: bytes | Callable[[], bytes]) -> None:
        """`data` that is yet to be made is made on the writer thread. The caller answers for what is in it: storage
        levels do not look inside.
        """
        now = time.time()

        def put(connection: Connection) -> Sequence[str]:
            content = data() if callable(data) else data
            row = (name, content, hashlib.sha256(content).digest(), now)
            return connection.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?)", row).fetchall()

        self._steps.append(put)

    def record_outcome(self, outcome: FeedbackOutcome) -> None:
        """Unless storage is "text", a correction's text leaves the disk with it."""
        self._outcomes.append(outcome)

    async def commit(self) -> None:
        """See `protocols.Writes`."""
        steps, self._steps = self._steps, []
        outcomes, self._outcomes = self._outcomes, []
        expected, self._expected = self._expected, {}
        session, keep_text = self._session, self._settings.storage == "text"

        def run(connection: Connection) -> tuple[list[str], bool]:
            left = [name for step in steps for name in step(connection)]
            left += [one.written[0] for one in expected.values() if one.written is not None]
            scrubbed = [feedback.record(connection, one, keep_text=keep_text) for one in outcomes]
            return adapters.unused(connection, left), any(scrubbed)

        def after(done: tuple[list[str], bool]) -> None:
            session.erase_if(done[1])
            session.files.remove(done[0])

        if steps or outcomes or expected:
            await session.write(run, after)
        for one in outcomes:
            if one.status != "queued":
                self._settled(one.feedback_id)

    def _file(self, stem: str, make: Callable[[], bytes]) -> _File:
        """Made and written on the writer thread. One that cannot be written ahead is tried again by the commit,
        which says so; one whose commit never comes is removed when the folder is opened.
        """
        file = _File(self._session.files, stem, make)
        if self._ahead:
            self._session.writer.submit(lambda _: file.write())
        return file
