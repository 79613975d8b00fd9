"""Feedback's way in: it moves routing statistics at once, and the learner's weights where there is a host."""

from __future__ import annotations

from ..events import Feedback, FeedbackOutcome
from ..protocols import FeedbackSink, Store
from .trajectories import TrajectoryFanOut

__all__ = ["FeedbackFanOut"]

CORRECTED_QUALITY = 0.0
"""What a correction says about the answer it replaces."""


class FeedbackFanOut:
    """A `FeedbackSink` over the pattern bank and the learner. The feedback is durable already."""

    def __init__(self, store: Store, trajectories: TrajectoryFanOut, learner: FeedbackSink) -> None:
        self._store, self._trajectories, self._learner = store, trajectories, learner

    async def learn(self, feedback: Feedback, *, wait: bool = False) -> FeedbackOutcome:
        """See `FeedbackSink`."""
        trajectory = await self._store.trajectory(feedback.request_id, tenant=feedback.tenant)
        if trajectory is not None and trajectory.embedding is not None:
            quality = feedback.quality if feedback.quality is not None else CORRECTED_QUALITY
            self._trajectories.learn_route(
                trajectory.embedding,
                model=trajectory.model,
                quality=quality,
                pattern_type=trajectory.route.pattern_type if trajectory.route else "General",
            )
        return await self._learner.learn(feedback, wait=wait)
