"""From questions to the vectors that the memory knows them by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..engine.memory import STATIC_DIM
from ..episodes import Question, QuestionVectors
from ..protocols import Embedder

__all__ = ["QuestionEmbedders"]

_Vector = NDArray[np.float32]
_Read = tuple[_Vector | None, _Vector | None]
_UNREAD: _Read = (None, None)


class QuestionEmbedders:
    """The bundled table, and the contextual encoder where there is one."""

    def __init__(self, static: Embedder, contextual: Embedder | None) -> None:
        if static.dim != STATIC_DIM:
            raise ValueError(f"the memory's table has {STATIC_DIM} dimensions, not {static.dim}")
        self._static, self._contextual = static, contextual

    @property
    def reads_paraphrases(self) -> bool:
        """Whether there is a contextual encoder."""
        return self._contextual is not None

    async def static(self, text: str) -> NDArray[np.float32]:
        """(256,)"""
        vector: NDArray[np.float32] = (await self._static.embed([text]))[0]
        return vector

    async def vectors(self, question: Question, static: NDArray[np.float32] | None = None) -> QuestionVectors:
        """Everything; `static`: of the question's text, where it is there already."""
        if static is None:
            static = await self.static(question.text)
        contextual, before = (await self._read([question]))[0]
        system = await self._system(question)
        return QuestionVectors(static=static, contextual=contextual, system=system, before=before)

    async def some(self, questions: Sequence[Question], *, contextual: bool) -> list[QuestionVectors]:
        """Of several at once."""
        rows = await self._static.embed([question.text for question in questions])
        read = await self._read(questions) if contextual else [_UNREAD] * len(questions)
        return [
            QuestionVectors(static=row, contextual=near, system=await self._system(question), before=before)
            for question, row, (near, before) in zip(questions, rows, read, strict=True)
        ]

    async def _read(self, questions: Sequence[Question]) -> list[_Read]:
        """Contextual vectors of each question and of what was said before it, in one run of the encoder."""
        if self._contextual is None:
            return [_UNREAD] * len(questions)
        earlier = [i for i, question in enumerate(questions) if question.before.strip()]
        texts = [question.text for question in questions] + [questions[i].before for i in earlier]
        rows = await self._contextual.embed(texts)
        before = dict(zip(earlier, rows[len(questions) :], strict=True))
        return [(rows[i], before.get(i)) for i in range(len(questions))]

    async def _system(self, question: Question) -> NDArray[np.float32] | None:
        return await self.static(question.system) if question.system.strip() else None
