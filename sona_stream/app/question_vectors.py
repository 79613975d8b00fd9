"""From questions to the vectors that the memory knows them by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..engine.memory import STATIC_DIM
from ..episodes import Question, QuestionVectors
from ..protocols import Embedder

__all__ = ["QuestionEmbedders"]


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
        contextual = None if self._contextual is None else (await self._contextual.embed([question.text]))[0]
        return QuestionVectors(static=static, contextual=contextual, system=await self._system(question))

    async def some(self, questions: Sequence[Question], *, contextual: bool) -> list[QuestionVectors]:
        """Of several at once."""
        texts = [question.text for question in questions]
        rows = await self._static.embed(texts)
        near = await self._contextual.embed(texts) if contextual and self._contextual is not None else None
        return [
            QuestionVectors(
                static=rows[i], contextual=None if near is None else near[i], system=await self._system(question)
            )
            for i, question in enumerate(questions)
        ]

    async def _system(self, question: Question) -> NDArray[np.float32] | None:
        return await self.static(question.system) if question.system.strip() else None
