"""Where finished trajectories go: the store keeps them, the pattern bank learns routing from them."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from ..engine import SonaEngine
from ..events import Feedback, PatternType, Trajectory
from ..protocols import Store

__all__ = ["TrajectoryFanOut"]

_log = logging.getLogger(__name__)

CORRECTED_QUALITY = 0.0
"""What a correction says about the answer it replaces."""


class TrajectoryFanOut:
    """A `TrajectorySink`. Runs on the event loop after an answer has ended; both steps take microseconds."""

    def __init__(self, store: Store, patterns: SonaEngine) -> None:
        self._store, self._patterns = store, patterns

    def submit(self, trajectory: Trajectory) -> None:
        """Keep the trajectory; a judged one moves its pattern's statistics (never weights)."""
        self._store.submit_trajectory(trajectory)
        quality = trajectory.score.value
        if not trajectory.learn or trajectory.outcome != "complete":
            return
        if trajectory.embedding is not None and quality is not None:
            self.learn_route(
                trajectory.embedding,
                model=trajectory.model,
                quality=quality,
                query_type=trajectory.route.query_type if trajectory.route else "General",
                latency_s=trajectory.duration_s,
            )

    async def judge(self, feedback: Feedback) -> None:
        """A person's judgement moves the same statistics as a score."""
        trajectory = await self._store.trajectory(feedback.request_id, tenant=feedback.tenant)
        if trajectory is not None and trajectory.embedding is not None:
            self.learn_route(
                trajectory.embedding,
                model=trajectory.model,
                quality=CORRECTED_QUALITY if feedback.quality is None else feedback.quality,
                query_type=trajectory.route.query_type if trajectory.route else "General",
            )

    def learn_route(
        self,
        embedding: NDArray[np.float32],
        *,
        model: str,
        quality: float,
        query_type: PatternType,
        latency_s: float | None = None,
    ) -> None:
        """Tell the pattern bank how a model did on a query. A failure costs the statistic, never an answer."""
        context: dict[str, object] = {"pattern_type": query_type}
        if latency_s is not None:
            context["latency_s"] = latency_s
        try:
            trajectory = self._patterns.begin_trajectory(embedding)
            self._patterns.set_trajectory_route(trajectory, model)
            self._patterns.add_trajectory_context(trajectory, context)
            self._patterns.end_trajectory(trajectory, quality)
        except ValueError:
            _log.exception("the pattern bank refused a trajectory")
