"""A judged answer, and the bounded memory of recent ones that replay and the gates draw from."""

from __future__ import annotations

import dataclasses
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from ...lora import F32, Capture
from .keys import AdapterKey

__all__ = ["DEMONSTRATION", "Lesson", "LessonBook", "joined", "up_to"]

DEMONSTRATION = 2.0
"""How the store's one number a capture says "correction": qualities end at 1."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """One captured answer and what was said about it."""

    capture: Capture
    quality: float | None
    """In [0, 1]; None: a correction, to be imitated as it stands."""
    groups: tuple[str, ...]
    """The key chain's groups, coarsest first"""
    feedback_id: str
    question: F32 | None = None
    """Embedding (e,) of what was asked; None: it is not known (any more)"""
    at: float = dataclasses.field(default_factory=time.time)
    """When it was kept (`time.time()`)"""

    @property
    def prompt(self) -> bytes:
        """The same for the same prompt."""
        return self.capture.prompt_ids.tobytes()

    @property
    def answer(self) -> str:
        """The same for the same answer. A correction is an answer of its own."""
        return self.capture.request_id

    @property
    def signal(self) -> float:
        """What the store keeps beside the capture."""
        return DEMONSTRATION if self.quality is None else self.quality


class LessonBook:
    """The newest `capacity` lessons of one model and tenant. Arrays are shared with the captures, not copied."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lessons: OrderedDict[str, Lesson] = OrderedDict()

    def __len__(self) -> int:
        return len(self._lessons)

    def __iter__(self) -> Iterator[Lesson]:
        return iter(tuple(self._lessons.values()))

    def __contains__(self, feedback_id: str) -> bool:
        return feedback_id in self._lessons

    def get(self, feedback_id: str) -> Lesson | None:
        """None: it is not among them."""
        return self._lessons.get(feedback_id)

    def repeats(self, lesson: Lesson) -> bool:
        """Whether another one says the same of the same answer."""
        same = (one for one in self._lessons.values() if one.answer == lesson.answer)
        return any(one.quality == lesson.quality and one.feedback_id != lesson.feedback_id for one in same)

    def add(self, lesson: Lesson) -> None:
        """Adds or replaces; the oldest leaves when the book is full."""
        self._lessons.pop(lesson.feedback_id, None)
        self._lessons[lesson.feedback_id] = lesson
        while len(self._lessons) > self._capacity:
            self._lessons.popitem(last=False)

    def expire(self, before: float) -> None:
        """Drops what was kept earlier than that (`time.time()`)."""
        while self._lessons and next(iter(self._lessons.values())).at < before:
            self._lessons.popitem(last=False)

    def forget(self, feedback_ids: Iterable[str]) -> None:
        """Drops these; unknown ids are no error."""
        for feedback_id in feedback_ids:
            self._lessons.pop(feedback_id, None)

    def of(self, key: AdapterKey) -> list[Lesson]:
        """Those that teach this key, `joined`, oldest first."""
        return joined(lesson for lesson in self._lessons.values() if key.group in lesson.groups)

    def ids(self, key: AdapterKey) -> list[str]:
        """Of every feedback that teaches this key."""
        return [lesson.feedback_id for lesson in self._lessons.values() if key.group in lesson.groups]

    @property
    def nbytes(self) -> int:
        """Memory held by the captures and questions."""
        held = self._lessons.values()
        return sum(one.capture.nbytes + (0 if one.question is None else one.question.nbytes) for one in held)


def joined(lessons: Iterable[Lesson]) -> list[Lesson]:
    """One lesson an answer. What was said of it several times is one opinion, the mean, where its newest was: every
    test takes lessons for independent, and copies would agree with each other whatever they say. An answer judged
    once stays the very object.
    """
    said = list(lessons)
    if len({lesson.answer for lesson in said}) == len(said):
        return said
    by_answer: dict[str, list[Lesson]] = {}
    for lesson in said:
        by_answer[lesson.answer] = [*by_answer.pop(lesson.answer, ()), lesson]
    return [own[0] if len(own) == 1 else _opinion(own) for own in by_answer.values()]


def _opinion(lessons: Sequence[Lesson]) -> Lesson:
    """Of one answer."""
    said = [one.quality for one in lessons if one.quality is not None]
    return dataclasses.replace(lessons[-1], quality=sum(said) / len(said) if said else None)


def up_to(lessons: Iterable[Lesson], tokens: int) -> list[Lesson]:
    """Lessons from the front until `tokens` tokens are reached; at least one where there is one."""
    chosen: list[Lesson] = []
    for lesson in lessons:
        if tokens <= 0:
            break
        chosen.append(lesson)
        tokens -= len(lesson.capture)
    return chosen
