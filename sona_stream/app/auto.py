"""`sona.learning: auto`: the score of an answer is feedback on it."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable

import anyio

from ..events import Feedback, Trajectory
from ..protocols import Store

__all__ = ["AutoFeedback"]

_log = logging.getLogger(__name__)

_WAITING = 1024


class AutoFeedback:
    """Takes trajectories off the hot path; commits their scores as feedback and hands it to the learner."""

    def __init__(self, store: Store, learn: Callable[[Feedback], Awaitable[object]]) -> None:
        self._store, self._learn = store, learn
        self._entrance, self._exit = anyio.create_memory_object_stream[Trajectory](_WAITING)
        self.drops = 0

    def offer(self, trajectory: Trajectory) -> None:
        """Never blocks; what does not fit is counted and not learned from."""
        try:
            self._entrance.send_nowait(trajectory)
        except anyio.WouldBlock:
            self.drops += 1

    async def run(self) -> None:
        """Until cancelled."""
        with self._entrance, self._exit:
            async for trajectory in self._exit:
                try:
                    await self._learn(await self._store.commit_feedback(_feedback(trajectory)))
                except Exception:  # the answers go on
                    _log.exception("the score of request %s could not be learned from", trajectory.request_id)


def _feedback(trajectory: Trajectory) -> Feedback:
    return Feedback(
        id=f"fb-{secrets.token_hex(16)}",
        request_id=trajectory.request_id,
        tenant=trajectory.tenant,
        key_id=trajectory.key_id,
        user=trajectory.user,
        kind="score",
        quality=trajectory.score.value,
        created_at=time.time(),
    )
