"""Where finished trajectories go: the store keeps them, the pattern bank learns routing from them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..engine import SonaEngine
from ..events import Feedback, Trajectory
from ..protocols import Store

__all__ = ["TrajectoryFanOut"]

_log = logging.getLogger(__name__)

CORRECTED_QUALITY = 0.0
"""What a correction says about the answer it replaces."""


class TrajectoryFanOut:
    """A `TrajectorySink`. Runs on the event loop after an answer has ended; both steps take microseconds."""

    def __init__(
        self,
        store: Store,
        patterns: SonaEngine,
        *,
        learn: bool,
        teach: Callable[[Trajectory], None] | None = None,
    ) -> None:
        """``learn``: False keeps trajectories and learns no routing (`sona.learning: off`). ``teach`` gets those
        whose score is to move weights.
        """
        self._store, self._patterns, self._learn, self._teach = store, patterns, learn, teach

    def submit(self, trajectory: Trajectory) -> None:
        """Keep the trajectory; a judged one moves its pattern's statistics."""
        self._store.submit_trajectory(trajectory)
        quality = trajectory.score.value
        if quality is None or trajectory.outcome != "complete":
            return
        self._learn_route(trajectory, quality, latency_s=trajectory.duration_s)
        if self._teach is not None and trajectory.learn:
            self._teach(trajectory)

    async def judge(self, feedback: Feedback) -> None:
        """A person's judgement moves the same statistics as a score."""
        trajectory = await self._store.trajectory(feedback.request_id, tenant=feedback.tenant)
        if trajectory is not None:
            self._learn_route(trajectory, CORRECTED_QUALITY if feedback.quality is None else feedback.quality)

    def _learn_route(self, trajectory: Trajectory, quality: float, *, latency_s: float | None = None) -> None:
        """Tell the pattern bank how a model did on a query. A failure costs the statistic, never an answer."""
        embedding, route = trajectory.embedding, trajectory.route
        if embedding is None or not (self._learn and trajectory.learn):
            return
        context: dict[str, object] = {"pattern_type": route.query_type if route else "General"}
        if latency_s is not None:
            context["latency_s"] = latency_s
        try:
            tid = self._patterns.begin_trajectory(embedding)
            self._patterns.set_trajectory_route(tid, trajectory.model)
            self._patterns.add_trajectory_context(tid, context)
            self._patterns.end_trajectory(tid, quality)
        except ValueError:
            _log.exception("the pattern bank refused a trajectory")
