"""What the product's own recall and gate let act, without a language model: `EpisodeMemory` with the static table
and the contextual encoder, every stored question with an answer of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from sona_stream.engine.memory import EpisodeMemory
from sona_stream.episodes import EpisodeRecord, Question, QuestionVectors, Viewer, person_of
from sona_stream.lora import HiddenSpace
from sona_stream_adapters.embedders import onnx, static

from .asking import KINDS, Asked, Kind, Stored

__all__ = ["Answered", "Encoders", "acting", "record", "shares"]


class Encoders:
    """Both, as the server has them."""

    def __init__(self) -> None:
        self.static = static.StaticEmbedder()
        self.contextual = onnx.create_embedder({})

    def vectors(self, texts: Sequence[str]) -> list[QuestionVectors]:
        """One a text."""
        pairs = zip(self.static.embed_many(texts), self.contextual.embed_many(texts), strict=True)
        return [QuestionVectors(static=one, contextual=other) for one, other in pairs]


@dataclasses.dataclass(frozen=True, slots=True)
class Answered:
    """What acted on one question."""

    asked: Asked
    acting: tuple[str, ...]
    """ids of corrections, best first"""
    gates: tuple[float, ...]
    candidates: int

    @property
    def right(self) -> bool:
        """The one that is meant acts, or none where none is meant."""
        return self.acting[:1] == ((self.asked.meant,) if self.asked.meant else ())


async def acting(
    encoders: Encoders, corrections: Sequence[Stored], questions: Sequence[Asked]
) -> tuple[list[Answered], int]:
    """Remembers all corrections, then asks. -> what acted; how many corrections another one wrongly superseded."""
    ids, lost = {}, 0
    who = Viewer(model="m", fingerprint="f", tenant="t", person=person_of(None, "k"))
    async with EpisodeMemory(None) as memory:
        vectors = encoders.vectors([one.text for one in corrections])
        for number, (one, meaning) in enumerate(zip(corrections, vectors, strict=True)):
            told = await memory.remember(record(number, Question(one.text), meaning))
            ids[told.episode.key] = one.id
            lost += len(told.superseded)
        found = []
        for each, meaning in zip(questions, encoders.vectors([one.text for one in questions]), strict=True):
            recalled = memory.recall(who, meaning.static)
            refs = memory.gate(recalled, Question(each.text), meaning)
            named = tuple(ids[ref.key] for ref in refs)
            found.append(Answered(each, named, tuple(ref.gate for ref in refs), len(recalled.slots)))
    return found, lost


def shares(answered: Sequence[Answered]) -> Mapping[Kind, tuple[int, int]]:
    """Kind -> (right, all)."""
    sets = {kind: [one.right for one in answered if one.asked.kind == kind] for kind in KINDS}
    return {kind: (sum(right), len(right)) for kind, right in sets.items() if right}


def record(number: int, question: Question, vectors: QuestionVectors) -> EpisodeRecord:
    """An answer of its own to this question."""
    space = HiddenSpace(np.zeros(4, np.float32), np.ones(4, np.float32), "space")
    return EpisodeRecord(
        model="m",
        fingerprint="f",
        tenant="t",
        key_id="k",
        request_id=f"r{number}",
        question=question,
        vectors=vectors,
        hidden=np.ones((1, 4), np.float32),
        token_ids=np.array([number], np.int32),
        space=space,
    )
