"""Conversations and the memory's gate: fits `sona_stream.engine.memory.context`, and tells what acts.

A ridge regression tells pairs of conversations that came to the same before their last questions from those that
did not, on `gate_training_turns.jsonl` alone. Positive: a conversation and its rewordings, each with the other's
last question, too, so that how the question is put teaches nothing; negative: each of them and those about
something else. Cross-validation leaves out whole conversations. Log odds of 0 decide.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sona_stream.engine.memory import EpisodeMemory, context, question_of
from sona_stream.engine.memory.comparison import differences
from sona_stream.engine.memory.words import Reader
from sona_stream.episodes import Question, QuestionVectors, Viewer, person_of

from .asking import Half
from .correcting import lines
from .gate_fit import Fitted, regression
from .gating import Encoders, record

__all__ = ["Acted", "Conversation", "Scenes", "acting", "conversations", "cross_validated", "fit", "scenes"]

RIDGE, FOLDS = 1.0, 6
Turns = tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """What a user said, message by message."""

    id: str
    turns: Turns
    reworded: tuple[Turns, ...]
    others: tuple[Turns, ...]
    """that end alike, about something else"""

    def pairs(self) -> list[tuple[Turns, Turns, bool]]:
        """(one, another, whether the same was said before)"""
        worded = (self.turns, *self.reworded)
        same = dict.fromkeys((*worded, *((*one[:-1], self.turns[-1]) for one in self.reworded)))
        found = [(a, b, True) for a, b in itertools.combinations(same, 2) if a[:-1] != b[:-1]]
        found += [(a, b, False) for a in worded for b in self.others if a[:-1] != b[:-1]]
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class Scenes:
    """Pairs of what was said before two questions."""

    evidence: NDArray[np.float64]
    """(n, m) in the order of `context.WEIGHTS`"""
    vetoed: NDArray[np.bool_]
    same: NDArray[np.bool_]
    of: NDArray[np.int64]
    """which conversation"""


@dataclasses.dataclass(frozen=True, slots=True)
class Acted:
    """Shares of the conversations, in percent."""

    own: float
    reworded: float
    other_kept: float


def conversations(half: Half) -> list[Conversation]:
    """Of `multi_turn.jsonl`, or "training": of `gate_training_turns.jsonl`."""
    if half == "training":
        rows = lines("gate_training_turns")
        return [Conversation(r["id"], tuple(r["turns"]), _all(r["reworded"]), _all(r["others"])) for r in rows]
    return [
        Conversation(row["id"], _said(row["messages"]), (_said(row["reworded"]),), (_said(row["other"]),))
        for row in lines("multi_turn")
        if row["split"] == half
    ]


def scenes(encoders: Encoders, asked: Sequence[Conversation]) -> Scenes:
    """All pairs of these conversations."""
    reader, pairs = Reader(b"fit"), [(n, *pair) for n, one in enumerate(asked) for pair in one.pairs()]
    texts = list(dict.fromkeys("\n".join(turns[:-1]) for _, a, b, _ in pairs for turns in (a, b)))
    vectors = dict(zip(texts, encoders.vectors(texts), strict=True))
    evidence, vetoed = [], []
    for _, a, b, _ in pairs:
        one, other = ("\n".join(turns[:-1]) for turns in (a, b))
        left, right = reader.read(one), reader.read(other)
        found = differences(left, right)
        evidence.append(context.evidence(left, right, _cosine(vectors[one], vectors[other]), found))
        vetoed.append(bool(found & context.VETOES))
    same, of = [pair[3] for pair in pairs], [pair[0] for pair in pairs]
    return Scenes(np.array(evidence), np.array(vetoed), np.array(same), np.array(of))


def fit(found: Scenes) -> Fitted:
    """On all that is not vetoed, every pair weighing alike."""
    used = ~found.vetoed
    return regression(found.evidence[used], found.same[used], RIDGE)


def cross_validated(found: Scenes) -> tuple[float, float]:
    """(share of the same that is let through, share of the others that is not), in percent."""
    odds = np.empty(len(found.same))
    for held in range(FOLDS):
        out = found.of % FOLDS == held
        used = ~out & ~found.vetoed
        fitted = regression(found.evidence[used], found.same[used], RIDGE)
        odds[out] = found.evidence[out] @ fitted.weights + fitted.bias
    through = (odds > 0) & ~found.vetoed
    return 100 * float(through[found.same].mean()), 100 * float((~through)[~found.same].mean())


async def acting(encoders: Encoders, asked: Sequence[Conversation]) -> Acted:
    """With all of these conversations' corrections in one memory."""
    who, ids = Viewer(model="m", fingerprint="f", tenant="t", person=person_of(None, "k")), {}
    async with EpisodeMemory(None) as memory:
        for number, one in enumerate(asked):
            question, meant = _asked(encoders, one.turns)
            told = await memory.remember(record(number, question, meant))
            ids[told.episode.key] = one.id

        def acted(turns: Turns) -> list[str]:
            question, meant = _asked(encoders, turns)
            return [ids[ref.key] for ref in memory.gate(memory.recall(who, meant.static), question, meant)]

        own = [acted(one.turns) == [one.id] for one in asked]
        reworded = [acted(turns) == [one.id] for one in asked for turns in one.reworded]
        kept = [not acted(turns) for one in asked for turns in one.others]
    return Acted(*(100 * float(np.mean(each)) for each in (own, reworded, kept)))


def _asked(encoders: Encoders, turns: Turns) -> tuple[Question, QuestionVectors]:
    question = question_of([{"role": "user", "content": text} for text in turns])
    if question is None:
        raise ValueError("conversations are all text")
    texts = [question.text, question.before] if question.before else [question.text]
    vectors, *before = encoders.vectors(texts)
    return question, dataclasses.replace(vectors, before=before[0].contextual if before else None)


def _cosine(a: QuestionVectors, b: QuestionVectors) -> float:
    if a.contextual is None or b.contextual is None:
        raise ValueError("conversations are compared by the contextual encoder")
    return float(a.contextual @ b.contextual)


def _said(messages: Sequence[dict[str, str]]) -> Turns:
    return tuple(one["content"] for one in messages if one["role"] == "user")


def _all(several: Sequence[Sequence[str]]) -> tuple[Turns, ...]:
    return tuple(map(tuple, several))
