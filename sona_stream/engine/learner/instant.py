"""The instant loop: one feedback, one bounded step on every taught level of its key chain."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Literal

from ...errors import CaptureGone, HostAway, HostError, SonaError
from ...events import AdapterRef, Feedback, FeedbackOutcome, Trajectory
from ...lora import AdapterRecord
from ...protocols import Writes
from .capturing import find_lesson, require_answer
from .evidence import Evidence
from .keys import AdapterKey, chain
from .lessons import Lesson
from .line import Line, in_order
from .state import State
from .step import NO_STEP, instant_step
from .tenure import answered_before

__all__ = ["InstantLoop", "ModelAway", "skipped"]

Status = Literal["queued", "published", "accepted", "gated", "skipped"]

_log = logging.getLogger(__name__)


class ModelAway(HostAway):
    """Something waits for the host of this model."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(reason)
        self.model = model


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
        """What became of it, which is recorded, and the levels whose replay it concerns. Raises CaptureGone,
        HostError, ModelAway.

        ``resumed``: a crash may have come between its step and its outcome, so look before stepping again.
        ``hurried``: more are waiting than a replay takes. A step would be undone by that replay before anybody
        saw it, so there is none.
        """
        trajectory = await self._state.store.trajectory(feedback.request_id, tenant=feedback.tenant)
        reason = self._nothing_to_do(feedback, trajectory)
        if trajectory is None or reason:
            outcome = _outcome(feedback, "skipped", reason)
            await self._state.store.record_outcome(outcome)
            return outcome, ()
        try:
            return await self._take(feedback, trajectory, resumed, hurried)
        except HostAway as error:
            raise ModelAway(trajectory.model, str(error)) from error

    async def _take(
        self, feedback: Feedback, trajectory: Trajectory, resumed: bool, hurried: bool
    ) -> tuple[FeedbackOutcome, tuple[AdapterKey, ...]]:
        keys = chain(trajectory.model, self._whose(trajectory), trajectory.route)
        if (await self._state.ledger(keys[0])).withdrawn(feedback.id):
            outcome = _outcome(feedback, "skipped", "taken back before it was learned")
            await self._state.store.record_outcome(outcome)
            return outcome, ()
        if self._of_another_model(trajectory):
            return await self._not_learned(feedback, trajectory), ()
        lesson = await find_lesson(
            self._state.host(trajectory.model),
            self._state.store,
            feedback,
            trajectory,
            [key.group for key in keys],
        )
        self._state.watches.rated(keys, trajectory, feedback)
        return await self._learn(feedback, keys, lesson, resumed, hurried)

    async def _episode(self, feedback: Feedback) -> str:
        """The episode of the memory that stands for a step; empty when there is none, and the lesson is learned all
        the same.
        """
        if self._remember is None or feedback.kind not in ("correction", "rating"):
            return ""
        try:
            return await self._remember(feedback)
        except HostError as error:
            self._state.counters["host_errors"] += 1
            _log.warning("feedback %s is not remembered: %s", feedback.id, error)
            return ""

    async def require_answer(self, feedback: Feedback) -> None:
        """Raises CaptureGone when `process` certainly would."""
        trajectory = await self._state.store.trajectory(feedback.request_id, tenant=feedback.tenant)
        if trajectory is not None and not self._nothing_to_do(feedback, trajectory):
            if self._of_another_model(trajectory):
                raise _another_model(trajectory)
            await require_answer(self._state.host(trajectory.model), feedback, trajectory)

    def _of_another_model(self, trajectory: Trajectory) -> bool:
        return answered_before(trajectory, self._state.since.get(trajectory.model, 0.0))

    async def _not_learned(self, feedback: Feedback, trajectory: Trajectory) -> FeedbackOutcome:
        """A correction may be remembered all the same, where the request's text is kept. Raises CaptureGone."""
        error = _another_model(trajectory)
        episode = await self._episode(feedback) if feedback.kind == "correction" else ""
        if not episode:
            raise error
        outcome = _outcome(feedback, "skipped", f"remembered as {episode}; no adapter learns from it: {error}")
        await self._state.store.record_outcome(outcome)
        return outcome

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
        """The answer and the versions that it teaches are durable before a host serves any; then, in one piece,
        what is served, what was counted, and the outcome. A crash between leaves what `_already` finishes.
        """
        state = self._state
        ledger = await state.ledger(keys[0])
        advantage = 1.0 if lesson.quality is None else ledger.baseline.advantage(lesson.quality, lesson.groups[-1])
        again = (await state.book(keys[0])).repeats(lesson)
        if not ledger.counted(feedback.id):
            ledger.count(feedback.id, lesson.groups, lesson.quality, again=again)
            active = [key.group for key in keys if state.active(key)]
            ledger.note([feedback.id], active, keep=state.newest)
        writes = state.store.together()
        await state.remember(keys[0], lesson, writes)
        taught = tuple(key for key in keys if state.active(key))
        reason = await self._no_step(feedback, lesson, advantage, hurried)
        reason = reason or ("the same was said of this answer before" if again else "")
        # A level that does not serve learns at its next replay: a step would be seen by nobody before it.
        stepping = [] if reason else [key for key in taught if state.used(key)]
        async with self._held(taught if resumed else stepping) as lines:
            outcome = await self._already(feedback, lines, writes) if resumed else None
            if outcome is None and reason:
                outcome = _outcome(feedback, "accepted", reason)
            if outcome is None:
                pupils = [line for line in lines if line.key in stepping]
                outcome = await self._teach(feedback, pupils, lesson, advantage, writes)
            writes.put_blob(*ledger.blob(settled=feedback.id))
            writes.record_outcome(outcome)
            await writes.commit()
            state.watches.taught(keys, feedback.id)
        ledger.settled(feedback.id)
        state.counters["accepted"] += 1
        return outcome, taught

    @asynccontextmanager
    async def _held(self, keys: Sequence[AdapterKey]) -> AsyncIterator[list[Line]]:
        """These lines, with their weights and locks."""
        versions = self._state.versions
        lines = [versions.line(key) for key in keys]
        async with AsyncExitStack() as stack:
            for line in in_order(lines):
                await stack.enter_async_context(versions.shelf.using(line))
                await stack.enter_async_context(line.lock)
            yield lines

    async def _already(self, feedback: Feedback, lines: Sequence[Line], writes: Writes) -> FeedbackOutcome | None:
        """The steps that this feedback made before a crash: told is the finest level's. Those that never came to be
        served, because the crash came in between or the host was away, are served now.
        """
        told = None
        for line in lines:
            for record in reversed(await self._state.store.adapters(str(line.key))):
                if feedback.id in record.feedback_ids:
                    await self._state.versions.finish(line, record, writes)
                    status: Status = "published" if record.status == "published" else "accepted"
                    told = _outcome(feedback, status, "learned before a restart", _ref(line.key, record.version))
                    break
        return told

    async def _teach(
        self, feedback: Feedback, lines: Sequence[Line], lesson: Lesson, advantage: float, writes: Writes
    ) -> FeedbackOutcome:
        """A step on each of these levels, from the coarsest on; then they are published."""
        told: dict[Line, FeedbackOutcome] = {}
        made: dict[Line, AdapterRecord] = {}
        for line in lines:
            if self._state.newborn(line):  # it begins as its parent's fit, which this very lesson moves
                told |= await self._publish(feedback, made, writes)
                made.clear()
            with self._refusals(feedback, line, told):
                step = await self._step(feedback, line, lesson, advantage, writes)
                if isinstance(step, AdapterRecord):
                    made[line] = step
                    writes.put_adapter(step)
                else:
                    told[line] = step
        told |= await self._publish(feedback, made, writes)
        published = [line for line in lines if told[line].status == "published"]
        return told[(published or lines)[-1]]

    async def _publish(
        self, feedback: Feedback, made: Mapping[Line, AdapterRecord], writes: Writes
    ) -> dict[Line, FeedbackOutcome]:
        told: dict[Line, FeedbackOutcome] = {}
        if made:
            await writes.commit()
        for line, record in made.items():
            line.latest = record.version  # also where the host goes away first: no other version gets its number
        for line, record in made.items():
            with self._refusals(feedback, line, told):
                await self._state.versions.serve(line, record, writes)
                self._state.counters["steps"] += 1
                told[line] = (
                    _outcome(feedback, "accepted", f"observed as {record.key}@{record.version}, not served")
                    if record.status == "observed"
                    else _outcome(feedback, "published", "step", _ref(line.key, record.version))
                )
        return told

    @contextmanager
    def _refusals(self, feedback: Feedback, line: Line, told: dict[Line, FeedbackOutcome]) -> Iterator[None]:
        """A host that refuses a step leaves the other levels alone."""
        try:
            yield
        except HostError as error:
            self._state.counters["host_errors"] += 1
            _log.warning("adapter %s: the host refused a step: %s", line.key, error)
            told[line] = _outcome(feedback, "gated", f"host: {error}")

    async def _no_step(self, feedback: Feedback, lesson: Lesson, advantage: float, hurried: bool) -> str:
        """Why it is kept for replay alone; empty when it is not."""
        episode = await self._episode(feedback)
        if episode:
            return f"remembered as {episode}; the next replay learns from it, too"
        if hurried and self._state.settings.replay_steps:
            return "many are waiting: it is learned with the next replay"
        if self._state.versions.frozen:
            return "publishing is frozen; the judgement is kept for replay"
        if self._state.rate == 0:
            return "micro_lora_lr is 0"
        if abs(advantage) < NO_STEP:
            return "the judgement is what was expected"
        poor = lesson.quality is not None and lesson.quality < self._state.rates.quality_threshold
        return "better than expected, but below quality_threshold" if poor and advantage > 0 else ""

    async def _step(
        self, feedback: Feedback, line: Line, lesson: Lesson, advantage: float, writes: Writes
    ) -> AdapterRecord | FeedbackOutcome:
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
        writes.expect_adapter(str(line.key), line.latest + 1, served, kept)  # on its way while the gate judges it
        verdict = await state.gate(line.key, served, lesson)
        if not verdict.ok:
            return self._gated(feedback, line.key, verdict.gate, verdict.reason)
        metrics = {**verdict.metrics, "predicted_kl": step.predicted_kl, "advantage": advantage}
        return state.versions.next(line, served, kept, reason="step", metrics=metrics, feedback_ids=(feedback.id,))

    def _gated(self, feedback: Feedback, key: AdapterKey, gate: str, reason: str) -> FeedbackOutcome:
        self._state.refuse(key, gate, reason)
        return _outcome(feedback, "gated", reason)


def _outcome(feedback: Feedback, status: Status, reason: str, adapter: AdapterRef | None = None) -> FeedbackOutcome:
    return FeedbackOutcome(feedback_id=feedback.id, status=status, reason=reason, adapter=adapter)


def _ref(key: AdapterKey, version: int) -> AdapterRef:
    return AdapterRef(key=str(key), version=version)


def _another_model(trajectory: Trajectory) -> CaptureGone:
    return CaptureGone(
        f"request {trajectory.request_id} was answered by another model, which was {trajectory.model!r} then"
    )


def skipped(feedback: Feedback, error: SonaError) -> FeedbackOutcome:
    """The outcome of a feedback that cannot be learned from, and will never be."""
    return _outcome(feedback, "skipped", str(error))
