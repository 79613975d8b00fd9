"""What recent requests asked, so that a correction finds its question.

A question of more than `LONGEST` characters, as where a document is pasted into it, is none here: nothing is
remembered for it and nothing recalled. Its words are compared on the event loop, where other answers wait.

In memory as it was said. Where `sona.storage` is `features`, text is nowhere else, and so a question is kept as a
sketch, too: quantised vectors and keyed hashes of its words (`EpisodeMemory.sketch`). A correction that comes after
a restart is remembered by that.
"""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import anyio
import anyio.to_thread

from ..engine.memory import EpisodeMemory, question_of
from ..episodes import KeptQuestion, Question
from ..errors import SonaError
from ..events import Request
from .question_vectors import QuestionEmbedders

__all__ = ["LONGEST", "AskedQuestions", "asked_in", "asked_in_body"]

_log = logging.getLogger(__name__)

_REMEMBERED = 16_384
LONGEST = 16_384
"""Characters of a question. Nobody corrects the answer to a longer one word by word."""
_WAITING = 4096
"""Questions that wait to be sketched; beyond, the oldest are given up."""
_GATHER_S = 0.2
_ROUND = 256
_CONTEXTUAL = 32
"""Of a round, the newest that get a contextual vector: milliseconds each. Of the others nearly the same words will
be recognised, no paraphrases.
"""
_AT_ONCE = 4
"""Texts in one run of the contextual encoder: a request that needs it waits for no more."""
_REST = 3.0
"""After a round, in lengths of the round: a quarter of one core at most."""


class _Waiting(NamedTuple):
    request_id: str
    tenant: str
    user: str | None
    question: Question


class AskedQuestions:
    """Belongs to one event loop."""

    def __init__(self, memory: EpisodeMemory, embedders: QuestionEmbedders, *, keep: bool) -> None:
        """``keep``: sketches, durably."""
        self._memory, self._embedders, self._keep = memory, embedders, keep
        self._asked: OrderedDict[str, Question] = OrderedDict()
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._more = anyio.Event()
        self.lost = 0
        """questions that could not be sketched in time"""

    def note(self, request: Request) -> None:
        """On a request's path. What is asked twice, as after a fallback, is noted once."""
        if request.id in self._asked or isinstance(request.prompt, tuple):
            return
        question = asked_in(request.messages, request.prompt)
        if question is None or not 0 < len(question.text) + len(question.system) <= LONGEST:
            return  # both are held in memory; after a longer system prompt the stored text tells, where it is kept
        self._asked[request.id] = question
        while len(self._asked) > _REMEMBERED:
            self._asked.popitem(last=False)
        if self._keep and question.text.strip():
            who = request.principal
            self._waiting[request.id] = _Waiting(request.id, who.tenant, who.user, question)
            while len(self._waiting) > _WAITING:
                self._waiting.popitem(last=False)
                self.lost += 1
            self._more.set()

    def get(self, request_id: str) -> Question | None:
        """As it was said; None when that is not known (any more)."""
        return self._asked.get(request_id)

    async def sketch(self, tenant: str, request_id: str) -> bytes:
        """What is kept of the question; empty when that is nothing."""
        return await self._memory.kept_question(tenant, request_id) or b""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._more.wait()
            await anyio.sleep(_GATHER_S)
            began = time.monotonic()
            await self.flush()
            await anyio.sleep(_REST * (time.monotonic() - began))

    async def finish(self) -> None:
        """Keeps all that wait."""
        while self._waiting:
            await self.flush()

    async def flush(self) -> None:
        """Keeps one round of those that wait, durably; those that cannot be kept are counted."""
        some = list(self._waiting.values())[:_ROUND]
        for one in some:
            del self._waiting[one.request_id]
        if not self._waiting:
            self._more = anyio.Event()
        try:
            await self._memory.keep_questions(await self._sketched(some))
        except SonaError as error:
            self.lost += len(some)
            _log.warning("corrections of %d requests will not be remembered after a restart: %s", len(some), error)
        except Exception:  # answers do not depend on it
            self.lost += len(some)
            _log.exception("%d questions cannot be kept", len(some))

    async def _sketched(self, some: Sequence[_Waiting]) -> list[KeptQuestion]:
        newest = max(0, len(some) - _CONTEXTUAL)
        kept = await self._sketches(some[:newest], contextual=False)
        for start in range(newest, len(some), _AT_ONCE):
            kept += await self._sketches(some[start : start + _AT_ONCE], contextual=True)
        return kept

    async def _sketches(self, some: Sequence[_Waiting], *, contextual: bool) -> list[KeptQuestion]:
        """Those that can be: one that cannot does not take the others with it."""
        try:
            return await self._together(some, contextual=contextual)
        except SonaError:
            raise
        except Exception:
            if len(some) == 1:
                self.lost += 1
                _log.exception("the question of request %s cannot be kept", some[0].request_id)
                return []
        found = [await self._sketches([one], contextual=contextual) for one in some]
        return [kept for each in found for kept in each]

    async def _together(self, some: Sequence[_Waiting], *, contextual: bool) -> list[KeptQuestion]:
        questions = [one.question for one in some]
        vectors = await self._embedders.some(questions, contextual=contextual) if some else []

        def made() -> list[bytes]:
            return [self._memory.sketch(*pair) for pair in zip(questions, vectors, strict=True)]

        sketches = await anyio.to_thread.run_sync(made)
        return [
            KeptQuestion(one.tenant, one.user, one.request_id, sketch)
            for one, sketch in zip(some, sketches, strict=True)
        ]


def asked_in(messages: Sequence[Mapping[str, Any]], prompt: str | None = None) -> Question | None:
    """`question_of` these, unless it is too long."""
    if prompt is not None and len(prompt) > LONGEST:
        return None
    question = question_of(messages, prompt)
    return None if question is None or len(question.text) > LONGEST else question


def asked_in_body(body: bytes) -> Question | None:
    """The same of a request as the client sent it."""
    said = json.loads(body)
    prompt = said.get("prompt")
    if isinstance(prompt, str):
        return asked_in((), prompt)
    return asked_in(said["messages"]) if said.get("messages") else None
