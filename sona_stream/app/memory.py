"""The memory of episodes at work: what a person corrected is recalled for the same question and put on the host."""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, NamedTuple

import anyio
import anyio.abc
import numpy as np

from ..config.settings import SonaSettings
from ..engine.learner import accepted_capture, correction_capture
from ..engine.learner.tenure import answered_before, answering_since
from ..engine.memory import EpisodeMemory
from ..episodes import Episode, EpisodeRecord, EpisodeText, Question, Viewer, person_of
from ..errors import CaptureGone, SonaError
from ..events import EpisodeRef, Feedback, Request, Trajectory
from ..lora import Capture
from ..protocols import HiddenStateHost, Store
from .asked import AskedQuestions, asked_in, asked_in_body
from .hosts import Hosts
from .question_vectors import QuestionEmbedders
from .renewal import Backends, Renewal
from .views import episode_view

__all__ = ["Memories"]

_log = logging.getLogger(__name__)

_FEEDBACKS = 4096
_FRESH_S = 2.0
_FLUSH_S = 2.0
_POOR = 0.5
"""Quality below which a rating takes back that the same answer was accepted."""


class _Subject(NamedTuple):
    """An answer that is judged."""

    trajectory: Trajectory
    host: HiddenStateHost
    question: Question | None
    sketch: bytes
    """where the question is not known"""
    foreign: bytes | None
    """The request's body, where another model gave the answer: its token ids mean nothing to this host"""


class Memories:
    """An `EpisodeRecall`, and where corrections go. Belongs to one event loop."""

    def __init__(
        self,
        memory: EpisodeMemory,
        hosts: Hosts,
        store: Store,
        embedders: QuestionEmbedders,
        backends: Backends,
        settings: SonaSettings,
    ) -> None:
        self.memory = memory
        self._hosts, self._store, self._embedders, self._settings = hosts, store, embedders, settings
        self._asked = AskedQuestions(memory, embedders, keep=settings.storage == "features" and memory.durable)
        self._renewal = Renewal(memory, hosts, backends)
        self._remembered: OrderedDict[str, str] = OrderedDict()
        """Feedback -> the key of its episode"""
        self._tasks: anyio.abc.TaskGroup | None = None

    async def __aenter__(self) -> Memories:
        await self.memory.__aenter__()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self.memory.on_gone = self._drop
        self._tasks.start_soon(self._asked.run)
        self._tasks.start_soon(self._renewal.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.memory.on_gone = None
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()
            await self._tasks.__aexit__(None, None, None)
            self._tasks = None
        with anyio.move_on_after(_FLUSH_S, shield=True):
            await self._asked.finish()
        await self.memory.__aexit__(kind, error, trace)

    # ---- on a request's path

    def concerns(self, request: Request) -> bool:
        """See `EpisodeRecall`. Notes what is asked, for a correction that may come."""
        host = self._hosts.host(request.model)
        if host is None or isinstance(request.prompt, tuple):
            return False
        if request.learn:
            self._asked.note(request)
        if not request.adapt or request.constrained:
            return False
        return self.memory.holds(_viewer(request, host))

    async def recall(self, request: Request) -> tuple[EpisodeRef, ...]:
        """See `EpisodeRecall`."""
        host = self._hosts.host(request.model)
        if host is None:
            return ()
        try:
            return await self._recall(request, host)
        except SonaError as error:
            _log.warning("request %s is answered without what was remembered: %s", request.id, error)
        except Exception:  # the answer does not depend on it
            _log.exception("request %s is answered without what was remembered", request.id)
        return ()

    async def _recall(self, request: Request, host: HiddenStateHost) -> tuple[EpisodeRef, ...]:
        question = self._asked.get(request.id) or asked_in(request.messages, _prompt(request))
        if question is None:
            return ()
        static = await self._embedders.static(question.text)
        recalled = self.memory.recall(_viewer(request, host), static)
        if not recalled:
            return ()
        vectors = await self._embedders.vectors(question, static)
        near = self.memory.gate(recalled, question, vectors)
        there = [host.holds_episode(ref.key) or await self._put(host, ref.key) for ref in near]
        return tuple(ref for ref, is_there in zip(near, there, strict=True) if is_there)

    async def _put(self, host: HiddenStateHost, key: str) -> bool:
        """Whether the episode is still there to be put."""
        states = self.memory.states(key)
        if states is not None:
            await host.put_episode(key, states.hidden, states.token_ids, states.space)
        return states is not None

    # ---- learning

    async def take(self, feedback: Feedback) -> str:
        """What the learner tells of: corrections, see `correct`, and ratings, by which an answer may be accepted or
        no longer be. -> the key of the episode that stands for a step; empty for a rating.
        """
        if feedback.kind == "correction":
            return await self.correct(feedback)
        if feedback.kind == "rating" and self._settings.memory.accepted != "off":
            try:
                await self._rated(feedback)
            except SonaError as error:  # the rating itself trains the adapter
                _log.info("rating %s changes nothing in the memory: %s", feedback.id, error)
        return ""

    async def correct(self, feedback: Feedback) -> str:
        """Remember this correction, unless that is done. -> its episode's key; empty when there is nothing to
        remember: no host, a question that is no text, or one that is no longer kept. Raises what the host raises.
        """
        known = await self._known(feedback)
        if known or feedback.kind != "correction":
            return known
        subject = await self._subject(feedback)
        answer = feedback.correction
        if subject is None or answer is None:
            return ""
        try:
            if subject.foreign is None:
                capture = await correction_capture(subject.host, feedback, subject.trajectory, hidden=True)
            else:
                model, name = subject.trajectory.model, f"{feedback.request_id}#{feedback.id}"
                capture = await self._renewal.encoded(model, subject.host, subject.foreign, answer, request_id=name)
        except CaptureGone:
            return ""
        return await self._remember(feedback, subject, capture, answer)

    async def accept_again(self, feedback: Feedback) -> list[str]:
        """A good rating stands alone again, a poor one of the same answer being taken back. -> keys of what is used
        again: none where nothing was forgotten, or it cannot be made anew
        """
        if (feedback.quality or 0.0) < self._settings.memory.accepted_quality or await self._made_by(feedback):
            return []
        self._remembered.pop(feedback.id, None)
        await self.take(feedback)
        return await self._made_by(feedback)

    async def _rated(self, feedback: Feedback) -> None:
        quality = 0.0 if feedback.quality is None else feedback.quality
        good = quality >= self._settings.memory.accepted_quality
        if not (good or quality < _POOR):
            return
        subject = await self._subject(feedback)
        if subject is None:
            return
        if good and not await self._known(feedback):
            answer = subject.trajectory
            whole = answer.finish_reason == "stop"
            if answer.outcome == "complete" and (whole or answer.finish_reason == "length"):
                capture = await accepted_capture(subject.host, answer)
                # Made anew from its text, one that was cut off would end where it was cut.
                await self._remember(feedback, subject, capture, answer.answer if whole else None)
        elif not good:
            await self._no_longer_accepted(feedback, subject)

    async def _no_longer_accepted(self, feedback: Feedback, subject: _Subject) -> None:
        trajectory = subject.trajectory
        viewer = Viewer(
            model=trajectory.model,
            fingerprint=subject.host.fingerprint,
            tenant=feedback.tenant,
            person=person_of(feedback.user, feedback.key_id),
        )
        if not self.memory.holds(viewer):
            return
        sketch = subject.sketch
        if subject.question is not None:
            vectors = await self._embedders.vectors(subject.question)
            sketch = self.memory.sketch(subject.question, vectors)
        ids = trajectory.token_ids or (await accepted_capture(subject.host, trajectory)).token_ids
        keys = self.memory.accepted(viewer, sketch, np.asarray(ids, np.int32))
        if keys:
            await self.memory.forget(tenant=feedback.tenant, keys=keys)

    async def _subject(self, feedback: Feedback) -> _Subject | None:
        """What a judgement is about; None when nothing can be remembered of it."""
        trajectory = await self._store.trajectory(feedback.request_id, tenant=feedback.tenant)
        if trajectory is None or not trajectory.learn:
            return None
        host = self._hosts.host(trajectory.model)
        if host is None:
            return None
        since = await answering_since(self._store, trajectory.model, host.fingerprint)
        own = not answered_before(trajectory, since)
        if not own and (feedback.kind != "correction" or trajectory.body is None):
            return None
        question = self._question(trajectory)
        sketch = b"" if question else await self._asked.sketch(trajectory.tenant, trajectory.request_id)
        foreign = None if own else trajectory.body
        return _Subject(trajectory, host, question, sketch, foreign) if question or sketch else None

    async def _remember(self, feedback: Feedback, subject: _Subject, capture: Capture, answer: str | None) -> str:
        trajectory, question = subject.trajectory, subject.question
        remembered = await self.memory.remember(
            EpisodeRecord(
                model=trajectory.model,
                fingerprint=capture.fingerprint,
                tenant=feedback.tenant,
                user=feedback.user,
                key_id=feedback.key_id,
                request_id=feedback.request_id,
                feedback_id=feedback.id,
                kind="correction" if feedback.kind == "correction" else "accepted",
                question=question,
                vectors=None if question is None else await self._embedders.vectors(question),
                sketch=subject.sketch,
                hidden=np.asarray(capture.hidden, np.float32),
                token_ids=np.asarray(capture.token_ids, np.int32),
                space=await subject.host.hidden_space(),
                text=None if answer is None else EpisodeText(answer=answer, body=trajectory.body),
                created_at=feedback.created_at,
            )
        )
        key = remembered.episode.key
        self._remembered[feedback.id] = key
        while len(self._remembered) > _FEEDBACKS:
            self._remembered.popitem(last=False)
        self._drop(remembered.superseded)
        return key

    def stats(self) -> dict[str, Any]:
        """For `/v1/sona/stats`."""
        reads = "paraphrases" if self._embedders.reads_paraphrases else "nearly the same words only"
        return {
            **self.memory.counters(),
            "questions_lost": self._asked.lost,
            "durable": self.memory.durable,
            "recognises": reads,
            "of_another_model": self._renewal.stats(),
        }

    def view(self, episode: Episode) -> dict[str, Any]:
        """For lists: see `episode_view`."""
        host = self._hosts.host(episode.model)
        kept_days = self._settings.storage_options.features_ttl_days
        fits = None if host is None else host.fingerprint == episode.fingerprint
        return episode_view(episode, fits=fits, expires_at=episode.stored_at + kept_days * 86400.0)

    async def export(self, tenant: str | None, after: int, limit: int) -> tuple[bytes, int | None]:
        """Up to `limit` JSON lines of episodes above number `after`, and the last one's number; None: no line."""
        lines: list[bytes] = []
        async with aclosing(self.memory.export(tenant=tenant, after=after)) as exported:
            async for line in exported:
                lines.append(line)
                if len(lines) == limit:
                    break
        return b"".join(lines), int(json.loads(lines[-1])["number"]) if lines else None

    # ---- how

    def _question(self, trajectory: Trajectory) -> Question | None:
        known = self._asked.get(trajectory.request_id)
        return known or (None if trajectory.body is None else asked_in_body(trajectory.body))

    async def _known(self, feedback: Feedback) -> str:
        if feedback.id in self._remembered:
            return self._remembered[feedback.id]
        if time.time() - feedback.created_at < _FRESH_S:
            return ""  # it came just now: no earlier start of the program can know it
        return next(iter(await self._made_by(feedback)), "")

    async def _made_by(self, feedback: Feedback) -> list[str]:
        person = person_of(feedback.user, feedback.key_id)
        found = await self.memory.episodes(tenant=feedback.tenant, person=person, feedback=feedback.id, limit=1)
        return [episode.key for episode in found]

    def _drop(self, keys: Sequence[str]) -> None:
        """Hosts let go of them. Nobody names them any more, so there is no hurry."""
        if keys and self._tasks is not None:
            self._tasks.start_soon(self._drop_from_hosts, tuple(keys))

    async def _drop_from_hosts(self, keys: Sequence[str]) -> None:
        for name in self._hosts:
            host = self._hosts.host(name)
            if host is not None:
                try:
                    for key in keys:
                        await host.drop_episode(key)
                except SonaError as error:
                    _log.info("%s keeps episodes that are gone: %s", name, error)


def _viewer(request: Request, host: HiddenStateHost) -> Viewer:
    principal = request.principal
    return Viewer(
        model=request.model,
        fingerprint=host.fingerprint,
        tenant=principal.tenant,
        person=person_of(principal.user, principal.key_id),
    )


def _prompt(request: Request) -> str | None:
    return request.prompt if isinstance(request.prompt, str) else None
