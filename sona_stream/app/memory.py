"""The memory of episodes at work: what a person corrected is recalled for the same question and put on the host."""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import anyio
import anyio.abc
import numpy as np
from numpy.typing import NDArray

from ..engine.learner import correction_capture
from ..engine.memory import STATIC_DIM, EpisodeMemory, Undone, question_of
from ..episodes import EpisodeRecord, EpisodeText, Question, QuestionVectors, Viewer, person_of
from ..errors import CaptureGone, SonaError
from ..events import EpisodeRef, Feedback, Principal, Request, Trajectory
from ..protocols import Embedder, HiddenStateHost, Store
from .hosts import Hosts

__all__ = ["Memories"]

_log = logging.getLogger(__name__)

_ASKED = 16_384
"""Questions of recent requests that are kept, so that a correction finds its own; with storage `features` their
text is nowhere else."""
_LONGEST = 16_384
"""Characters of a question. Nobody corrects the answer to a longer one word by word."""
_FEEDBACKS = 4096
_FRESH_S = 2.0


class Memories:
    """An `EpisodeRecall`, and where corrections go. Belongs to one event loop."""

    def __init__(
        self,
        memory: EpisodeMemory,
        hosts: Hosts,
        store: Store,
        static: Embedder,
        contextual: Embedder | None,
    ) -> None:
        """``static`` is the bundled table."""
        if static.dim != STATIC_DIM:
            raise ValueError(f"the memory's table has {STATIC_DIM} dimensions, not {static.dim}")
        self.memory = memory
        self._hosts, self._store, self._static, self._contextual = hosts, store, static, contextual
        self._asked: OrderedDict[str, Question] = OrderedDict()
        self._remembered: OrderedDict[str, str] = OrderedDict()
        """Feedback -> the key of its episode"""
        self._tasks: anyio.abc.TaskGroup | None = None

    async def __aenter__(self) -> Memories:
        await self.memory.__aenter__()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self.memory.on_gone = self._drop
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.memory.on_gone = None
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()
            await self._tasks.__aexit__(None, None, None)
            self._tasks = None
        await self.memory.__aexit__(kind, error, trace)

    # ---- on a request's path

    def concerns(self, request: Request) -> bool:
        """See `EpisodeRecall`. Notes what is asked, for a correction that may come."""
        host = self._hosts.host(request.model)
        if host is None or isinstance(request.prompt, tuple):
            return False
        if request.learn:
            self._note(request.id, question_of(request.messages, request.prompt))
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
            return ()

    async def _recall(self, request: Request, host: HiddenStateHost) -> tuple[EpisodeRef, ...]:
        question = self._asked.get(request.id) or question_of(request.messages, _prompt(request))
        static = await self._static_vector(question.text)
        recalled = self.memory.recall(_viewer(request, host), static)
        if not recalled:
            return ()
        vectors = await self._vectors(question, static)
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

    async def correct(self, feedback: Feedback) -> str:
        """Remember this correction, unless that is done. -> its episode's key; empty when there is nothing to
        remember: no host, a question that is no text, or one that is no longer kept. Raises what the host raises.
        """
        known = await self._known(feedback)
        if known or feedback.kind != "correction":
            return known
        trajectory = await self._store.trajectory(feedback.request_id, tenant=feedback.tenant)
        if trajectory is None or not trajectory.learn:
            return ""
        host, question = self._hosts.host(trajectory.model), self._question(trajectory)
        if host is None or question is None:
            return ""
        try:
            capture = await correction_capture(host, feedback, trajectory, hidden=True)
            space = await host.hidden_space()
        except CaptureGone:
            return ""
        static = await self._static_vector(question.text)
        remembered = await self.memory.remember(
            EpisodeRecord(
                model=trajectory.model,
                fingerprint=host.fingerprint,
                tenant=feedback.tenant,
                user=feedback.user,
                key_id=feedback.key_id,
                request_id=feedback.request_id,
                feedback_id=feedback.id,
                question=question,
                vectors=await self._vectors(question, static),
                hidden=np.asarray(capture.hidden, np.float32),
                token_ids=np.asarray(capture.token_ids, np.int32),
                space=space,
                text=EpisodeText(answer=feedback.correction or "", body=trajectory.body),
                created_at=feedback.created_at,
            )
        )
        key = remembered.episode.key
        self._remembered[feedback.id] = key
        while len(self._remembered) > _FEEDBACKS:
            self._remembered.popitem(last=False)
        self._drop(remembered.superseded)
        return key

    async def undo(self, principal: Principal, model: str | None) -> Undone | None:
        """Take back the newest correction that this person gave and that is still the person's own."""
        person = person_of(principal.user, principal.key_id)
        return await self.memory.undo(principal.tenant, person, model=model)

    def stats(self) -> dict[str, Any]:
        """For `/v1/sona/stats`."""
        reads = "paraphrases" if self._contextual is not None else "nearly the same words only"
        return {**self.memory.counters(), "durable": self.memory.durable, "recognises": reads}

    # ---- how

    def _note(self, request_id: str, question: Question) -> None:
        if 0 < len(question.text) + len(question.system) <= _LONGEST:
            self._asked[request_id] = question
            while len(self._asked) > _ASKED:
                self._asked.popitem(last=False)

    def _question(self, trajectory: Trajectory) -> Question | None:
        known = self._asked.get(trajectory.request_id)
        return known or (None if trajectory.body is None else _read_question(trajectory.body))

    async def _known(self, feedback: Feedback) -> str:
        if feedback.id in self._remembered:
            return self._remembered[feedback.id]
        if time.time() - feedback.created_at < _FRESH_S:
            return ""  # it came just now: no earlier start of the program can know it
        person = person_of(feedback.user, feedback.key_id)
        for episode in await self.memory.episodes(tenant=feedback.tenant, person=person):
            if episode.feedback_id == feedback.id:
                return episode.key
        return ""

    async def _static_vector(self, text: str) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = (await self._static.embed([text]))[0]
        return vector

    async def _vectors(self, question: Question, static: NDArray[np.float32]) -> QuestionVectors:
        contextual = None if self._contextual is None else (await self._contextual.embed([question.text]))[0]
        system = await self._static_vector(question.system) if question.system.strip() else None
        return QuestionVectors(static=static, contextual=contextual, system=system)

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


def _read_question(body: bytes) -> Question | None:
    """Of a request as the client sent it."""
    said = json.loads(body)
    prompt = said.get("prompt")
    if isinstance(prompt, str):
        return question_of((), prompt)
    return question_of(said["messages"]) if said.get("messages") else None


def _prompt(request: Request) -> str | None:
    return request.prompt if isinstance(request.prompt, str) else None
