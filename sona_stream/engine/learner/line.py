"""One adapter key's versions, as the learner has them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import anyio

from ...lora import AdapterRecord, LoraWeights
from .keys import AdapterKey
from .optimiser import Moments

__all__ = ["Line", "Status", "in_order"]

Status = Literal["published", "observed", "canary"]


class Line:
    """One adapter key's history: what is served, and what the next step starts from. Its records have weights only
    while the `Shelf` lets them.
    """

    def __init__(self, key: AdapterKey) -> None:
        self.key = key
        self.served: AdapterRecord | None = None
        self.working: AdapterRecord | None = None
        """Equals `served` except under `observe`, where it runs ahead unserved, and while there is a canary."""
        self.candidate: AdapterRecord | None = None
        """The newest version while only a share of the requests gets it."""
        self.outgoing: AdapterRecord | None = None
        """The canary before it, which answers that are under way still use."""
        self.fit: LoraWeights | None = None
        """Where its last replay ended"""
        self.latest = 0
        self.foreign = 0
        """Up to which version they were made for another model than the present one; 0 where the latest was not."""
        self.epoch = 0
        """Counts rollbacks: work begun before one is void."""
        self._lock: anyio.Lock | None = None
        self._serving: anyio.Lock | None = None

    def next(
        self,
        weights: LoraWeights,
        moments: Moments,
        fingerprint: str,
        status: Status,
        reason: str,
        metrics: Mapping[str, float],
        feedback_ids: Sequence[str],
    ) -> AdapterRecord:
        """The version after the latest."""
        return AdapterRecord(
            key=str(self.key),
            version=self.latest + 1,
            parent=None if self.working is None else self.working.version,
            fingerprint=fingerprint,
            weights=weights,
            moments=moments,
            status=status,
            reason=reason,
            metrics=dict(metrics),
            feedback_ids=tuple(feedback_ids),
            created_at=time.time(),
        )

    @property
    def lock(self) -> anyio.Lock:
        """Held while the line learns, or goes back."""
        if self._lock is None:  # most lines of a start never learn, and a lock takes 700 bytes
            self._lock = anyio.Lock(fast_acquire=True)
        return self._lock

    @property
    def serving(self) -> anyio.Lock:
        """Held while a version comes onto the host."""
        if self._serving is None:
            self._serving = anyio.Lock(fast_acquire=True)
        return self._serving


def in_order(lines: Iterable[Line]) -> list[Line]:
    """Whoever takes the locks of several lines takes them in this order: then nobody waits in a circle."""
    return sorted(lines, key=lambda line: line.key)
