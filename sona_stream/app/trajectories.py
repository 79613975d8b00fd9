"""Where finished trajectories go: the store keeps them, their tenant's pattern bank learns routing from them."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..engine import SonaEngine
from ..events import Feedback, Trajectory, pupil
from ..protocols import Store
from .patterns import PatternBanks

__all__ = ["TrajectoryFanOut"]

_log = logging.getLogger(__name__)

_PUPILS = 65_536
CORRECTED_QUALITY = 0.0
"""What a correction says about the answer it replaces."""


class TrajectoryFanOut:
    """A `TrajectorySink`. Runs on the event loop after an answer has ended; both steps take microseconds."""

    def __init__(
        self,
        store: Store,
        patterns: PatternBanks,
        *,
        learn: bool,
        teach: Callable[[Trajectory], None] | None = None,
        watch: Callable[[Trajectory], None] | None = None,
    ) -> None:
        """``learn``: False keeps trajectories and learns no routing (`sona.learning: off`). ``teach`` gets those
        whose score is to move weights, ``watch`` every one.
        """
        self._store, self._patterns, self._learn, self._teach = store, patterns, learn, teach
        self._watch = watch
        self._pupils: OrderedDict[str, str] = OrderedDict()
        """Request id -> whose lesson it is, where an end user was named: a store may not keep that."""

    def submit(self, trajectory: Trajectory) -> None:
        """Keep the trajectory; a judged one moves its pattern's statistics."""
        if trajectory.user is not None:
            self._pupils[trajectory.request_id] = pupil(trajectory.tenant, trajectory.user)
            while len(self._pupils) > _PUPILS:
                self._pupils.popitem(last=False)
        self._store.submit_trajectory(trajectory)
        if self._watch is not None:
            self._watch(trajectory)
        quality = trajectory.score.value
        if quality is None or trajectory.outcome != "complete":
            return
        self._learn_route(trajectory, quality, latency_s=trajectory.duration_s)
        if self._teach is not None and trajectory.learn:
            self._teach(trajectory)

    def whose(self, trajectory: Trajectory) -> str:
        """The `pupil` of a recorded answer."""
        return self._pupils.get(trajectory.request_id) or pupil(trajectory.tenant, trajectory.user)

    async def judge(self, feedback: Feedback) -> None:
        """A person's judgement moves the same statistics as a score."""
        trajectory = await self._store.trajectory(feedback.request_id, tenant=feedback.tenant)
        if trajectory is not None:
            self._learn_route(trajectory, CORRECTED_QUALITY if feedback.quality is None else feedback.quality)

    def _learn_route(self, trajectory: Trajectory, quality: float, *, latency_s: float | None = None) -> None:
        """Tell the tenant's pattern bank how a model did on a query."""
        embedding, route, model = trajectory.embedding, trajectory.route, trajectory.model
        if embedding is None or not (self._learn and trajectory.learn):
            return
        context: dict[str, object] = {"pattern_type": route.query_type if route else "General"}
        if latency_s is not None:
            context["latency_s"] = latency_s
        self._patterns.learn(trajectory.tenant, lambda bank: _tell(bank, embedding, model, context, quality))


def _tell(
    bank: SonaEngine, embedding: NDArray[np.float32], model: str, context: dict[str, object], quality: float
) -> None:
    """A failure costs the statistic, never an answer."""
    try:
        tid = bank.begin_trajectory(embedding)
        bank.set_trajectory_route(tid, model)
        bank.add_trajectory_context(tid, context)
        bank.end_trajectory(tid, quality)
    except ValueError:
        _log.exception("the pattern bank refused a trajectory")
