"""The instant loop: one feedback, one bounded step on every taught level of its key chain."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from ...errors import CaptureGone, HostError
from ...events import AdapterRef, Feedback, FeedbackOutcome, Trajectory
from .capturing import find_lesson, require_answer
from .evidence import Evidence
from .keys import AdapterKey, chain
from .lessons import Lesson
from .state import State
from .step import NO_STEP, instant_step
from .versions import Line

__all__ = ["InstantLoop", "gone"]

Status = Literal["queued", "published", "accepted", "gated", "skipped"]

_log = logging.getLogger(__name__)


class InstantLoop:
    """Turns feedback into versions. `Learner` calls it with one feedback at a time."""

    def __init__(
        self,
        state: State,
        whose: Callable[[Trajectory], str],
        remember: Callable[[Feedback], Awaitable[str]] | None = None,
    ) -> None:
        self._state, self._whose, self._remember = state, whose, remember

    async def process(
        self, feedback: Feedback, *, resumed: bool = False, hurried: bool = False
    ) -> tuple[FeedbackOutcome, tuple[AdapterKey, ...]]:
        """What became of it, and the levels whose replay it concerns. Raises CaptureGone.

        ``resumed``: a crash may have come between its step and its outcome, so look before stepping again.
        ``hurried``: more are waiting than a replay takes. A step would be undone by that replay before anybody
        saw it, so there is none.
        """
        trajectory = await self._state.store.trajectory(feedback.request_id, tenant=feedback.tenant)
        reason = self._nothing_to_do(feedback, trajectory)
        if trajectory is None or reason:
            return _outcome(feedback, "skipped", reason), ()
        keys = chain(trajectory.model, self._whose(trajectory), trajectory.route)
        self._require_same_model(trajectory)
        lesson = await find_lesson(
            self._state.host(trajectory.model),
            self._state.store,
            feedback,
            trajectory,
            [key.group for key in keys],
        )
        if not resumed:
            self._state.watches.rated(keys, trajectory, feedback)
        return await self._learn(feedback, keys, lesson, resumed, hurried)

    async def _episode(self, feedback: Feedback) -> str:
        """The episode of the memory that stands for a step; empty when there is none."""
        if self._remember is None or feedback.kind not in ("correction", "rating"):
            return ""
        return await self._remember(feedback)

    async def require_answer(self, feedback: Feedback) -> None:
        """Raises CaptureGone when `process` certainly would."""
        trajectory = await self._state.store.trajectory(feedback.request_id, tenant=feedback.tenant)
        if trajectory is not None and not self._nothing_to_do(feedback, trajectory):
            self._require_same_model(trajectory)
            await require_answer(self._state.host(trajectory.model), feedback, trajectory)

    def _require_same_model(self, trajectory: Trajectory) -> None:
        model = trajectory.model
        if 0 < trajectory.started_at < self._state.since.get(model, 0.0):
            raise CaptureGone(
                f"request {trajectory.request_id} was answered by another model, which was {model!r} then"
            )

    def _nothing_to_do(self, feedback: Feedback, trajectory: Trajectory | None) -> str:
        state = self._state
        if state.mode == "off":
            return "sona.learning is off"
        if feedback.kind == "score" and state.mode != "auto":
            return "automatic scores move weights only with sona.learning: auto"
        if trajectory is None:
            return f"request {feedback.request_id} is not known (any more)"
        if not trajectory.learn:
            return "the request asked not to be learned from"
        if trajectory.model not in state.expected:
            return f"the hidden states of model {trajectory.model!r} are out of reach"
        return ""

    async def _learn(
        self, feedback: Feedback, keys: Sequence[AdapterKey], lesson: Lesson, resumed: bool, hurried: bool
    ) -> tuple[FeedbackOutcome, tuple[AdapterKey, ...]]:
        state = self._state
        ledger = await state.ledger(keys[0])
        advantage = 1.0 if lesson.quality is None else ledger.baseline.advantage(lesson.quality, lesson.groups[-1])
        if not ledger.counted(feedback.id):
            ledger.count(feedback.id, lesson.groups, lesson.quality)
        await state.remember(keys[0], lesson)
        taught = tuple(key for key in keys if state.active(key))
        episode = await self._episode(feedback)
        done = await self._already(feedback, taught) if resumed else None
        if done is None and episode:
            done = _outcome(feedback, "accepted", f"remembered as {episode}; the next replay learns from it, too")
        if done is None and hurried and self._state.settings.replay_steps:
            done = _outcome(feedback, "accepted", "many are waiting: it is learned with the next replay")
        outcome = done or await self._teach_all(feedback, taught, lesson, advantage)
        await ledger.save(state.store)
        state.counters["accepted"] += 1
        return outcome, taught

    async def _already(self, feedback: Feedback, keys: Sequence[AdapterKey]) -> FeedbackOutcome | None:
        """The step that this feedback made before a crash: the finest level's. One that never came to be served,
        because the crash came in between or the host was away, is served now.
        """
        versions = self._state.versions
        for key in reversed(keys):
            for record in reversed(await self._state.store.adapters(str(key))):
                if feedback.id in record.feedback_ids:
                    await versions.finish(versions.line(key), record)
                    status: Status = "published" if record.status == "published" else "accepted"
                    return _outcome(feedback, status, "learned before a restart", _ref(key, record.version))
        return None

    async def _teach_all(
        self, feedback: Feedback, keys: Sequence[AdapterKey], lesson: Lesson, advantage: float
    ) -> FeedbackOutcome:
        reason = self._no_step(lesson, advantage)
        if reason:
            return _outcome(feedback, "accepted", reason)
        outcomes = [(key, await self._teach(feedback, key, lesson, advantage)) for key in keys]
        published = [(key, one) for key, one in outcomes if one.status == "published"]
        serving = [one for key, one in published or outcomes if self._state.used(key)]
        return serving[-1] if serving else outcomes[-1][1]

    def _no_step(self, lesson: Lesson, advantage: float) -> str:
        if self._state.versions.frozen:
            return "publishing is frozen; the judgement is kept for replay"
        if self._state.rate == 0:
            return "micro_lora_lr is 0"
        if abs(advantage) < NO_STEP:
            return "the judgement is what was expected"
        poor = lesson.quality is not None and lesson.quality < self._state.rates.quality_threshold
        return "better than expected, but below quality_threshold" if poor and advantage > 0 else ""

    async def _teach(
        self, feedback: Feedback, key: AdapterKey, lesson: Lesson, advantage: float
    ) -> FeedbackOutcome:
        versions = self._state.versions
        async with versions.shelf.using(versions.line(key)) as line, line.lock:
            try:
                return await self._step(feedback, line, lesson, advantage)
            except HostError as error:
                self._state.counters["host_errors"] += 1
                _log.warning("adapter %s: the host refused a step: %s", key, error)
                return _outcome(feedback, "gated", f"host: {error}")

    async def _step(self, feedback: Feedback, line: Line, lesson: Lesson, advantage: float) -> FeedbackOutcome:
        state, settings = self._state, self._state.settings
        weights, moments = await state.beginning(line, lesson)
        evidence = Evidence.of(moments)
        lessons = (await state.book(line.key)).of(line.key)
        step = await instant_step(
            state.host(line.key.model),
            lesson.capture,
            weights,
            moments,
            advantage=advantage,
            demonstration=lesson.quality is None,
            anchor=settings.anchor,
            pace=state.pace(await state.metric(line.key, lesson), evidence, len(lessons)),
            step_kl=state.step_kl,
            elastic=await state.elastic(line.key, lessons),
        )
        if step is None:
            return self._gated(feedback, line.key, "budget", "no step within step_kl was found")
        evidence = evidence.counting(correction=lesson.quality is None)
        served, kept = state.version(step.weights, step.moments, evidence)
        verdict = await state.gate(line.key, served, lesson)
        if not verdict.ok:
            return self._gated(feedback, line.key, verdict.gate, verdict.reason)
        metrics = {**verdict.metrics, "predicted_kl": step.predicted_kl, "advantage": advantage}
        record = await state.versions.publish(
            line, served, kept, reason="step", metrics=metrics, feedback_ids=(feedback.id,)
        )
        state.counters["steps"] += 1
        if record.status == "observed":
            return _outcome(feedback, "accepted", f"observed as {record.key}@{record.version}, not served")
        return _outcome(feedback, "published", "step", _ref(line.key, record.version))

    def _gated(self, feedback: Feedback, key: AdapterKey, gate: str, reason: str) -> FeedbackOutcome:
        self._state.refuse(key, gate, reason)
        return _outcome(feedback, "gated", reason)


def _outcome(feedback: Feedback, status: Status, reason: str, adapter: AdapterRef | None = None) -> FeedbackOutcome:
    return FeedbackOutcome(feedback_id=feedback.id, status=status, reason=reason, adapter=adapter)


def _ref(key: AdapterKey, version: int) -> AdapterRef:
    return AdapterRef(key=str(key), version=version)


def gone(feedback: Feedback, error: CaptureGone) -> FeedbackOutcome:
    """The outcome of a feedback about an answer that can no longer be reconstructed."""
    return _outcome(feedback, "skipped", str(error))
