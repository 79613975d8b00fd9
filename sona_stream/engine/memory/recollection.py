"""The request's side of the memory: from a question's vectors to the episodes that act. Synchronous, and quick."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...episodes import (
    EpisodeKind,
    EpisodeStates,
    EpisodeStore,
    Question,
    QuestionVectors,
    Scope,
    Viewer,
    key_of,
    number_of,
)
from ...events import EpisodeRef
from ...kernels import Kernels
from ...lora import HiddenSpace
from .comparison import RECALL_COSINE
from .context import Before
from .encoding import Codes, Head, codes_of, head_from, states_from, tokens_from
from .index import EpisodeIndex, Found, circle_of
from .judging import ACCEPTED_SHARE, Asked, Near, asked_as, choose, closeness, same_question
from .sketch import sketch_from, sketch_of
from .words import Reader
from .worth import used

__all__ = ["CANDIDATES", "Recalled", "Recollection"]

_log = logging.getLogger("sona_stream.engine.memory")

CANDIDATES = 64
"""The nearest by the static vectors that are looked at again: hundreds of prompts of one form lie close."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Recalled:
    """Candidates for one question, nearest first; falsy when there is none."""

    slots: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    cosines: tuple[float, ...] = ()
    """of the static vectors"""

    def __bool__(self) -> bool:
        return bool(self.numbers)


NOTHING = Recalled()


class Recollection:
    """Reads the index and the bytes; writes nothing but how often an episode was used."""

    def __init__(
        self,
        index: EpisodeIndex,
        store: EpisodeStore,
        kernels: Kernels,
        half_life: float,
        lost: Callable[[int], None],
    ) -> None:
        """`lost`: told of the number of an episode whose bytes are gone or damaged."""
        self.index, self._store, self._kernels = index, store, kernels
        self._half_life, self._lost = half_life, lost
        self.reader = Reader(store.secret())
        self.spaces: dict[tuple[str, str], HiddenSpace] = {}
        self.uses: Counter[int] = Counter()
        """Number -> uses that are not written yet"""
        self.counters: Counter[str] = Counter()

    def recall(self, viewer: Viewer, static: NDArray[np.float32]) -> Recalled:
        """See `EpisodeMemory.recall`."""
        if not self.index.holds(viewer):
            return NOTHING
        if static.shape != (self.index.dim,):
            raise ValueError(f"static must have shape ({self.index.dim},), not {static.shape}")
        self.counters["searches"] += 1
        recalled = self._nearest(viewer, codes_of(static, self._kernels))
        if recalled:
            self.counters["recalled"] += 1
        return recalled

    def gate(self, recalled: Recalled, question: Question, vectors: QuestionVectors) -> tuple[EpisodeRef, ...]:
        """See `EpisodeMemory.gate`."""
        chosen = self._chosen(self._asked(question, vectors), recalled)
        return () if chosen is None else (self._use(*chosen),)

    def acting(self, viewer: Viewer, static: Codes, head: Head) -> int | None:
        """Slot of the episode that acts on the question of this head; not counted as a use."""
        chosen = self._chosen(asked_as(head), self._nearest(viewer, static))
        return None if chosen is None else chosen[0].slot

    def _nearest(self, viewer: Viewer, query: Codes) -> Recalled:
        found = self.index.search(viewer, query, least=RECALL_COSINE, most=CANDIDATES)
        numbers = self.index.rows["number"][found.slots].tolist()
        return Recalled(tuple(found.slots.tolist()), tuple(numbers), tuple(found.cosines.tolist()))

    def _chosen(self, asked: Asked, recalled: Recalled) -> tuple[Near, float] | None:
        near = []
        for slot, number, static in zip(recalled.slots, recalled.numbers, recalled.cosines, strict=True):
            head = self.head(slot, number)
            close = 0.0 if head is None else closeness(asked, head, static)
            if head is not None and close > 0:
                row = self.index.rows[slot]
                correction, rank = bool(row["correction"]), int(row["rank"])
                near.append(Near(slot, close, head, self.index.scope(slot), correction, rank))
        return choose(asked, near)

    def sketch(self, question: Question, vectors: QuestionVectors) -> bytes:
        """See `EpisodeMemory.sketch`."""
        return sketch_of(question, vectors, self.reader, self._kernels)

    def states(self, key: str) -> EpisodeStates | None:
        """See `EpisodeMemory.states`."""
        slot = self.slot(key)
        if slot is None:
            return None
        number = int(self.index.rows["number"][slot])
        head, body = self.head(slot, number), self._store.body(self.index.place(slot))
        if head is None:
            return None
        space = self.spaces.get((self.index.fingerprint(slot), head.space_version))
        if body is None or space is None:
            self._report(number)
            return None
        return states_from(body, space)

    def slot(self, key: str) -> int | None:
        """None for an episode that is not there (any more)."""
        number = number_of(key)
        slot = None if number is None else self.index.slot_of(number)
        if slot is None or key_of(int(number or 0), int(self.index.rows["stamp"][slot])) != key:
            return None
        return slot

    def head(self, slot: int, number: int) -> Head | None:
        """None when the slot is another's by now, or the bytes are gone."""
        if self.index.rows["number"][slot] != number:
            return None
        data = self._store.head(self.index.place(slot))
        if data is None:
            self._report(number)
            return None
        return head_from(data)

    def same_in(self, circle: bytes, static: Codes, head: Head) -> list[int]:
        """Slots of the current answers to this question in one circle, the nearest first."""
        found: Found = self.index.in_circle(circle, static, least=RECALL_COSINE, most=CANDIDATES)
        slots: Sequence[int] = found.slots.tolist()
        heads = ((slot, self.head(slot, int(self.index.rows["number"][slot]))) for slot in slots)
        return [slot for slot, other in heads if other is not None and same_question(head, other)]

    def replaced(
        self, viewer: Viewer, scope: Scope, static: Codes, head: Head, kind: EpisodeKind = "correction"
    ) -> list[int]:
        """Slots of the current answers to this question that a new one stands for, in the viewer's circle of this
        scope: those of other models, too, which may be made anew. What was only accepted overrules no correction.
        """
        others = [one for one in self.index.fingerprints() if one != viewer.fingerprint]
        whose = viewer.tenant, viewer.person
        circles = [circle_of(viewer.model, one, scope, *whose) for one in (viewer.fingerprint, *others)]
        slots = [slot for circle in circles for slot in self.same_in(circle, static, head)]
        return [slot for slot in slots if kind == "correction" or not self.index.rows["correction"][slot]]

    def beside(self, slot: int, viewer: Viewer, scope: Scope, head: Head) -> tuple[list[int], int | None]:
        """Slots of the answers to the same question in the circle that the episode in `slot` is to come into: older
        ones, for which it stands there, and the newest of those that stand for it.
        """
        rows = self.index.rows
        circle = circle_of(viewer.model, viewer.fingerprint, scope, viewer.tenant, viewer.person)
        older: list[int] = []
        newer: list[int] = []
        for other in self.same_in(circle, self.index.codes(slot), head):
            last, first = (other, slot) if rows["rank"][other] > rows["rank"][slot] else (slot, other)
            if rows["correction"][last] or not rows["correction"][first]:
                (newer if last == other else older).append(other)
        return older, max(newer, key=lambda one: int(rows["rank"][one]), default=None)

    def known(
        self,
        rivals: Sequence[int],
        viewer: Viewer,
        static: Codes,
        head: Head,
        kind: EpisodeKind,
        ids: NDArray[np.int32],
    ) -> int | None:
        """The slot among `rivals` that has said what is new: one with the same words that acts on the question
        already, or would but for a correction; or a correction that nothing accepted overrules. A correction of
        words that were only accepted is new.
        """
        rows, acting, correction = self.index.rows, self.acting(viewer, static, head), kind == "correction"
        overruled = not correction and acting is not None and bool(rows["correction"][acting])
        for slot in rivals:
            if rows["correction"][slot] and not correction:
                return slot
            acts = overruled or (slot == acting and bool(rows["correction"][slot]) == correction)
            body = self._store.body(self.index.place(slot)) if acts else None
            if body is not None and np.array_equal(tokens_from(body), ids):
                return slot
        return None

    def accepted(self, viewer: Viewer, sketch: bytes, token_ids: NDArray[np.int32]) -> list[str]:
        """See `EpisodeMemory.accepted`."""
        static, head = sketch_from(sketch)
        circle = circle_of(viewer.model, viewer.fingerprint, "person", viewer.tenant, viewer.person)
        rows = self.index.rows
        slots = [slot for slot in self.same_in(circle, static, head) if not rows["correction"][slot]]
        bodies = ((slot, self._store.body(self.index.place(slot))) for slot in slots)
        same = [s for s, body in bodies if body is not None and np.array_equal(tokens_from(body), token_ids)]
        return [key_of(int(rows["number"][slot]), int(rows["stamp"][slot])) for slot in same]

    def _asked(self, question: Question, vectors: QuestionVectors) -> Asked:
        contextual, system, before = vectors.contextual, vectors.system, vectors.before
        if question.system.strip() and system is None:
            raise ValueError("vectors.system must be given for a question with a system prompt")
        return Asked(
            features=self.reader.read(question.text),
            contextual=None if contextual is None else codes_of(contextual, self._kernels),
            system=codes_of(system, self._kernels) if system is not None and question.system.strip() else None,
            before=None
            if before is None or not question.before.strip()
            else Before(self.reader.read(question.before), codes_of(before, self._kernels)),
        )

    def _use(self, one: Near, gate: float) -> EpisodeRef:
        row = self.index.rows[one.slot]
        number = int(row["number"])
        row["standing"] = used(float(row["standing"]), time.time(), self._half_life)
        self.uses[number] += 1
        self.counters["used"] += 1
        share = 1.0 if one.correction else ACCEPTED_SHARE
        return EpisodeRef(key=key_of(number, int(row["stamp"])), gate=gate, share=share)

    def _report(self, number: int) -> None:
        _log.error("episode %d cannot be read and is not used any more; see `sona-stream state verify`", number)
        self._lost(number)
