"""`POST /v1/feedback/undo`: what a person said last is taken back, out of the memory and out of the weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..engine.learner import Learner
from ..episodes import Episode, Scope, person_of
from ..errors import FeedbackConflict, NotFound, SonaError
from ..events import Feedback, FeedbackOutcome, Principal, pupil
from ..protocols import Store
from .memory import Memories
from .said import TAKEN_BACK, Said, Standing, refusal
from .trajectories import TrajectoryFanOut

__all__ = ["TakingBack"]

_log = logging.getLogger(__name__)

View = Mapping[str, Any]


class TakingBack:
    """A part of `Application`."""

    store: Store
    trajectories: TrajectoryFanOut
    _said: Said
    _learner: Learner | SonaError
    _memory: Memories | None

    async def undo(self, principal: Principal, model: str | None = None, request_id: str | None = None) -> View:
        """See `Services`. Two at once may take the same back, never one too many."""
        refused = ""
        async for feedback, outcome in self._said.by(principal, request_id):
            trajectory = await self.store.trajectory(feedback.request_id, tenant=feedback.tenant)
            made = await self._episodes(principal, 1, feedback=feedback.id)
            said = Standing(feedback, outcome, trajectory, made[0] if made else None)
            if model not in (None, said.model):
                continue
            why = self._stays(said)
            if not why:
                return await self._take_back(principal, said)
            if not refused:
                known = {one.key for one in made}
                others = [] if request_id else await self._episodes(principal, 2, scope="person")
                refused = refusal(said, why, next((one for one in others if one.key not in known), None))
            if request_id is None:
                break
        if refused:
            raise FeedbackConflict(refused)
        raise NotFound("there is no correction of yours, and no other feedback, to take back")

    def _stays(self, said: Standing) -> str:
        """Why it cannot be taken back; empty when it can."""
        episode, outcome = said.episode, said.outcome
        if episode is not None and episode.scope != "person":
            return (
                f"an admin gave it to others (scope {episode.scope}), and an admin can delete it: "
                f"sona-stream memory forget {episode.key}"
            )
        if episode is None and outcome is not None and outcome.status == "skipped":
            return f"no model learned from it ({outcome.reason}), and routing statistics stay as they are"
        if outcome is not None and outcome.status != "skipped" and not said.model:
            return "the request is known no more, and with it what was taught"
        return ""

    async def _take_back(self, principal: Principal, said: Standing) -> View:
        """Out of what was learned, out of the memory, and then for good: what fails on the way can be asked for
        again.
        """
        feedback, episode = said.feedback, said.episode
        outcome = said.outcome or await self._through(feedback)
        if said.model and (outcome is None or outcome.status != "skipped"):
            whose = pupil(feedback.tenant, feedback.user)
            if said.trajectory is not None:
                whose = self.trajectories.whose(said.trajectory)
            if isinstance(self._learner, SonaError):
                raise self._learner.with_traceback(None)
            await self._learner.unlearn(
                said.model, whose, feedback.id, request_id=feedback.request_id, given_at=feedback.created_at
            )
        undone = None if self._memory is None or episode is None else await self._memory.memory.undo(episode.key)
        returned = await self._accepted_again(principal, feedback) if undone is None else list(undone.returned)
        await self.store.record_outcome(
            FeedbackOutcome(feedback_id=feedback.id, status="skipped", reason=TAKEN_BACK)
        )
        stepped = outcome is not None and outcome.status == "published" and outcome.adapter
        return {
            "feedback": feedback.id,
            "request_id": feedback.request_id,
            "kind": feedback.kind,
            "metric_name": feedback.metric_name,
            "value": feedback.value,
            "created_at": feedback.created_at,
            "episode": None if episode is None else episode.key,
            "returned": returned,
            "adapter": str(stepped) if stepped else None,
        }

    async def _accepted_again(self, principal: Principal, feedback: Feedback) -> list[str]:
        """Keys of what a poor rating had forgotten, where the person's rating before it found that answer good."""
        if self._memory is not None and feedback.kind == "rating":
            async for other, _ in self._said.by(principal, feedback.request_id):
                if other.kind == "rating" and other.id != feedback.id:
                    return await self._memory.accept_again(other)
        return []

    async def _through(self, feedback: Feedback) -> FeedbackOutcome | None:
        """What waits is learned first, where it can be: afterwards nobody is at work on it."""
        learner = self._learner
        for waiting in await self.store.pending_feedback():
            if waiting.id == feedback.id and isinstance(learner, Learner):
                try:
                    await learner.learn(waiting, wait=True)
                except Exception as error:  # whatever it is, there is nothing to be taken back then
                    _log.info("feedback %s is taken back without being learned: %s", feedback.id, error)
        return await self.store.outcome(feedback.id)

    async def _episodes(
        self, principal: Principal, limit: int, *, feedback: str | None = None, scope: Scope | None = None
    ) -> list[Episode]:
        """What this person's judgements made, newest first. A few: their requests' texts are read with them."""
        if self._memory is None:
            return []
        person = person_of(principal.user, principal.key_id)
        return await self._memory.memory.episodes(
            tenant=principal.tenant, person=person, scope=scope, feedback=feedback, limit=limit
        )
