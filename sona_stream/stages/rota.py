"""Who of several deployments is asked next, and after which errors another one is."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from ..errors import ModelUnavailable, NotReady, UpstreamError

__all__ = ["FAILURES", "Rota", "may_go_elsewhere"]

COOLDOWN_S = 10.0
"""A deployment that could not be reached is tried last for this long."""

FAILURES = (UpstreamError, NotReady, ModelUnavailable)
"""What a deployment may fail with before its first byte; `may_go_elsewhere` says of which others would, too."""

Member = TypeVar("Member")


class Rota(Generic[Member]):
    """The deployments of one model, taken in turn; those that just failed come last."""

    def __init__(self, members: Sequence[Member], clock: Callable[[], float] = time.monotonic) -> None:
        self._members = tuple(members)
        self._turn = itertools.count()
        self._failed_at = [float("-inf")] * len(self._members)
        self._clock = clock

    def in_turn(self) -> Iterator[tuple[int, Member]]:
        """(index, member), each once; every call begins with the next one."""
        start, n, now = next(self._turn), len(self._members), self._clock()
        order = [(start + i) % n for i in range(n)]
        order.sort(key=lambda i: now - self._failed_at[i] < COOLDOWN_S)  # stable: keeps the turn
        return ((i, self._members[i]) for i in order)

    def failed(self, index: int) -> None:
        """The member at this index did just now."""
        self._failed_at[index] = self._clock()


def may_go_elsewhere(error: UpstreamError | NotReady | ModelUnavailable) -> bool:
    """Whether another deployment might not have this error."""
    return not isinstance(error, UpstreamError) or error.retryable
