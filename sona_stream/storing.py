"""What keeps what is learned: rows, tensors, blobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Protocol, runtime_checkable

from .events import Feedback, FeedbackOutcome, Trajectory
from .lora import F32, AdapterRecord, Capture, LoraWeights

__all__ = ["AdapterLister", "CaptureHead", "Store", "Writes"]


@dataclasses.dataclass(frozen=True, slots=True)
class CaptureHead:
    """A kept answer without its arrays."""

    seq: int
    """Rises with every answer that is kept, whatever the clock says; the same one kept again gets a new one."""
    key: str
    feedback_id: str
    fingerprint: str
    stored_at: float
    """`time.time()`"""


class Writes(Protocol):
    """Writes that a crash can't part, each as the `Store`'s own. One task uses it; what was not committed is never
    seen.
    """

    def put_capture(self, key: str, capture: Capture, advantage: float, *, feedback_id: str) -> None:
        """Its bytes may be on their way to the disk at once, and so may an adapter's: they are most of the wait."""
        ...

    def drop_captures(self, *, key: str = "", feedback_id: str = "") -> None:
        """Of what was committed before: all that is kept under this key, all that came with this feedback."""
        ...

    def expect_adapter(self, key: str, version: int, weights: LoraWeights, moments: Mapping[str, F32]) -> None:
        """A `put_adapter` with these very objects may follow before the next commit. It is no write by itself."""
        ...

    def put_adapter(self, record: AdapterRecord) -> None: ...
    def set_current(self, key: str, version: int, *, reason: str) -> None: ...
    def prune_adapters(self, key: str, *, keep: int, older: int = 0, besides: int = 0) -> None: ...
    def put_blob(self, name: str, data: bytes | Callable[[], bytes]) -> None:
        """`data` that is yet to be made is made in another thread."""
        ...

    def record_outcome(self, outcome: FeedbackOutcome) -> None: ...

    async def commit(self) -> None:
        """All since the last commit: durable when it returns, or none of it when it raises."""
        ...


class Store(Protocol):
    """What is learned, durable. ``async with store:`` opens and closes it; writes never run on the event loop.

    A method that names a tenant never answers with another tenant's rows.
    """

    async def __aenter__(self) -> Store: ...
    async def __aexit__(self, *exc: object) -> None: ...

    def submit_trajectory(self, trajectory: Trajectory) -> None:
        """Queue; visible to `trajectory` at once, durable within a second. Never blocks; drops are counted."""
        ...

    async def trajectory(self, request_id: str, *, tenant: str | None = None) -> Trajectory | None: ...
    async def trajectories(self, *, limit: int, after: float = 0.0) -> list[Trajectory]:
        """The newest `limit` with started_at > after, oldest first."""
        ...

    async def find_requests(self, any_id: str, *, tenant: str) -> list[str]:
        """Request ids that this id names: our own, the completion's ``id``, or one the client sent."""
        ...

    async def commit_feedback(self, feedback: Feedback) -> Feedback:
        """Durable when it returns. The same idempotency key (per tenant) with the same content returns the first
        feedback; with other content it raises FeedbackConflict.
        """
        ...

    async def pending_feedback(self) -> list[Feedback]:
        """Committed, but without an outcome: what a crash left behind, oldest first."""
        ...

    async def record_outcome(self, outcome: FeedbackOutcome) -> None: ...
    async def outcome(self, feedback_id: str) -> FeedbackOutcome | None: ...
    async def feedback(
        self, *, tenant: str | None = None, person: str | None = None, limit: int = 1000
    ) -> list[Feedback]:
        """The newest `limit`, oldest first. `person`: what that person of the tenant (`episodes.person_of`) said,
        without automatic scores; where `sona.storage` is "none" nobody's name is kept.
        """
        ...

    async def put_capture(self, key: str, capture: Capture, advantage: float, *, feedback_id: str) -> None:
        """Keep a judged answer for replay under an adapter key. Storage "none" keeps nothing."""
        ...

    async def captures(self, key: str, *, limit: int) -> list[tuple[Capture, float, str]]:
        """(capture, quality signal, feedback_id), newest `limit`, oldest first."""
        ...

    async def newest_captures(
        self, keys: Collection[str], wanted: Callable[[CaptureHead], bool], *, limit: int
    ) -> list[tuple[CaptureHead, Capture, float]]:
        """(head, capture, quality signal) of all these keys together, of those that are `wanted`: the newest
        `limit`, oldest first. `wanted` may be called in another thread, the newest first.
        """
        ...

    async def put_adapter(self, record: AdapterRecord) -> None: ...
    async def adapter(self, key: str, version: int) -> AdapterRecord | None: ...
    async def adapters(self, key: str | None = None) -> list[AdapterRecord]:
        """Index rows (weights loaded), newest version last."""
        ...

    async def current_versions(self) -> dict[str, int]:
        """Adapter key -> the version that is served; 0 after a rollback to the base model."""
        ...

    async def set_current(self, key: str, version: int, *, reason: str) -> None: ...
    async def prune_adapters(self, key: str, *, keep: int, older: int = 0, besides: int = 0) -> None:
        """All but the newest `keep` versions, the served one, and the one named `besides`; and, so that there is
        something to go back to, up to `older` published ones from before them, each about twice as far back as
        the next.
        """
        ...

    async def stats(self) -> dict[str, object]:
        """Rows, bytes, queue length, drops, the last error."""
        ...

    def together(self) -> Writes:
        """For writes that need each other."""
        ...

    async def put_blob(self, name: str, data: bytes) -> None: ...
    async def get_blob(self, name: str) -> bytes | None: ...
    async def blob_names(self, prefix: str) -> list[str]:
        """Of every blob whose name begins so."""
        ...


@runtime_checkable
class AdapterLister(Protocol):
    """A `Store` that can tell which versions there are without reading their weights."""

    async def adapter_heads(
        self, *, tenant: str | None = None, described: bool = False
    ) -> list[tuple[AdapterRecord, int]]:
        """(version, bytes of its file), by key, the newest last. Weights have rank 0; moments are left out, and so
        are metrics and feedback ids unless `described`. `tenant`: with its end users.
        """
        ...
