"""The values of the memory of episodes: a question, and the states and tokens of the answer that belongs to it.

Shapes: ``T`` tokens of one answer, ``d`` hidden size of the model. Arrays only, no policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .lora import HiddenSpace

__all__ = [
    "Along",
    "Dropped",
    "Episode",
    "EpisodeEntry",
    "EpisodeKind",
    "EpisodeRecord",
    "EpisodeStates",
    "EpisodeStore",
    "EpisodeText",
    "KeepsEpisodes",
    "KeptQuestion",
    "NewEpisode",
    "Place",
    "Question",
    "QuestionVectors",
    "Scope",
    "Viewer",
    "key_of",
    "number_of",
    "person_of",
]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

Scope = Literal["person", "tenant", "global"]
EpisodeKind = Literal["correction", "accepted"]
Along = Literal["all", "own", "none"]
"""What goes with an episode of what it superseded; the rest is current again. "all": by age, for room, or by an
admin's word; "own": the same person's, where a person or tenant is forgotten; "none": it is taken back."""


def key_of(number: int, stamp: int) -> str:
    """What hosts know an episode by: unique among all state folders and their copies."""
    return f"{number:x}-{stamp:016x}"


def number_of(key: str) -> int | None:
    """The number in a key; None when it is none. Whether there is such an episode is another question."""
    number, _, stamp = key.partition("-")
    if len(stamp) != 16 or not set(number + stamp) <= set("0123456789abcdef") or not 0 < len(number) <= 15:
        return None
    return int(number, 16)


def person_of(user: str | None, key_id: str) -> str:
    """Whose an episode is within its tenant: the identified end user's, else the API key's."""
    return f"key:{key_id}" if user is None else f"user:{user}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """Who asks which model: what an episode must match to be looked at."""

    model: str
    """The deployment's ``model_name``"""
    fingerprint: str
    """of the host that will answer"""
    tenant: str
    person: str
    """`person_of` the request's principal"""


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """What is asked, made to stand by itself (see `engine.memory.question_of`)."""

    text: str
    """The last user message; where that leans on what was said before, the earlier user messages before it"""
    system: str = ""
    """System and developer messages, one a line"""
    before: str = ""  # earlier user messages that the last may mean, one a line; no store keeps the text of it


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class QuestionVectors:
    """Of unit length, or zero for an empty text."""

    static: F32
    """(256,) of `Question.text` by the static table"""
    contextual: F32 | None = None
    """(384,) of `Question.text` by the contextual encoder; None where there is none"""
    system: F32 | None = None
    """(256,) of `Question.system` by the static table; None where that is empty"""
    before: F32 | None = None  # (384,) of `Question.before` by the contextual encoder


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeText:
    """What an episode is made anew from when the model changes. Kept at `sona.storage: text` only."""

    answer: str
    body: bytes | None = None
    """The request's JSON as the client sent it"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EpisodeRecord:
    """An answer to remember: who gave it, to what question, and the unadapted model's states on it."""

    model: str
    fingerprint: str
    tenant: str
    user: str | None = None
    key_id: str
    request_id: str
    feedback_id: str = ""
    kind: EpisodeKind = "correction"
    question: Question | None = None
    vectors: QuestionVectors | None = None
    sketch: bytes = b""
    """`EpisodeMemory.sketch` of the question, instead of both, where its text is not known any more"""
    hidden: F32
    """(T, d) of the unadapted pass: row t is the state that token t follows"""
    token_ids: I32  # (T,)
    space: HiddenSpace
    text: EpisodeText | None = None
    created_at: float = 0.0
    """`time.time()` of the feedback; 0: now"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A remembered answer, as lists and headers show it: who, when, which request, which scope."""

    key: str
    """What `EpisodeRef.key` says; unique among all state folders"""
    number: int  # counts up within the state folder
    model: str
    fingerprint: str
    scope: Scope
    tenant: str
    user: str | None
    key_id: str
    request_id: str
    feedback_id: str
    kind: EpisodeKind
    tokens: int  # pairs that are kept
    answer_tokens: int
    """of the whole answer; more than `tokens` when it was longer than `sona.memory.max_tokens`"""
    nbytes: int
    created_at: float
    stored_at: float
    """What retention counts from"""
    promoted_by: str | None = None
    """key id of the admin"""
    promoted_at: float | None = None
    superseded_by: int | None = None
    """number of the newer answer to the same question that is used in its place"""
    uses: int = 0
    text: EpisodeText | None = None
    question: Question | None = None
    """None unless `sona.storage` is "text\""""

    @property
    def person(self) -> str:
        """Who gave it, as `Viewer.person` names people."""
        return person_of(self.user, self.key_id)

    @property
    def renewable(self) -> bool:
        """Whether it can be made anew for another model: request and answer are kept."""
        return self.text is not None and self.text.body is not None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class EpisodeStates:
    """What a host is given: `host.put_episode(key, hidden, token_ids, space)`."""

    hidden: F32
    """(T, d) float32, through int8 with a scale per row in the standardised space"""
    token_ids: I32  # (T,)
    space: HiddenSpace


class Place(NamedTuple):
    """Where an episode's bytes are."""

    segment: int
    offset: int
    length: int
    stamp: int
    """63 random bits in the row and in the record"""


class EpisodeEntry(NamedTuple):
    """What the index keeps in memory of one episode."""

    number: int
    rank: int
    """order of arrival in its scope: promotion counts as arrival"""
    model: str
    fingerprint: str
    scope: Scope
    tenant: str
    person: str
    kind: EpisodeKind
    superseded_by: int | None
    standing: float
    """log2 of its worth at time 0 of a worth that halves every half-life (see `engine.memory.worth`)"""
    static: bytes
    """(256,) int8"""
    place: Place


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewEpisode:
    """A row to be written, with the bytes that go into a segment."""

    episode: Episode
    """``number`` and ``key`` are given by the store"""
    static: bytes
    standing: float
    head: bytes  # read to judge a candidate
    body: bytes  # token ids and states
    space: HiddenSpace
    rank: int | None = None
    """None: the newest"""


class KeptQuestion(NamedTuple):
    """`EpisodeMemory.sketch` of what a request asked."""

    tenant: str
    user: str | None
    request_id: str
    sketch: bytes


class Dropped(NamedTuple):
    """What became of `EpisodeStore.drop`."""

    numbers: list[int]
    """that are gone"""
    returned: list[EpisodeEntry]
    """that are current again"""


class EpisodeStore(Protocol):
    """Where episodes are kept. Writes are durable when they return: the bytes first, then the row that names them.

    Every write is one transaction. `SqliteStore.episode_store` is one; the memory has another that lives in RAM.
    """

    durable: bool
    expired: int
    """that left for their age, so far"""
    on_removed: Callable[[Dropped], None] | None
    """Told on the event loop of what left without the memory asking: retention, or a person forgotten."""

    def secret(self) -> bytes:
        """Keys hashes of words; of this store for ever."""
        ...

    async def put(
        self, new: NewEpisode, *, supersede: Sequence[int] = (), replace: int | None = None
    ) -> EpisodeEntry:
        """`supersede`: numbers that this one stands for from now on. `replace`: a number that goes, in whose place
        among the superseded this one comes.
        """
        ...

    async def count(self) -> int: ...

    async def entries(self, *, after: int = 0, limit: int = 1 << 30) -> list[EpisodeEntry]:
        """By number, of those above `after`."""
        ...

    async def find(self, numbers: Sequence[int]) -> list[Episode]:
        """Those of them that are there, by number."""
        ...

    async def latest(
        self,
        *,
        tenant: str | None = None,
        person: str | None = None,
        scope: Scope | None = None,
        model: str | None = None,
        feedback: str | None = None,
        limit: int = 1000,
    ) -> list[Episode]:
        """Newest first. None: whichever."""
        ...

    async def stale(
        self, model: str, fingerprint: str, *, below: int | None = None, limit: int = 1000
    ) -> list[Episode]:
        """Of this model, made for another fingerprint; the highest number first, `below`: of lower ones only."""
        ...

    async def move(
        self, number: int, *, scope: Scope, by: str, supersede: Sequence[int] = ()
    ) -> EpisodeEntry | None:
        """Into another scope, as the newest there; None when it is gone."""
        ...

    async def drop(self, numbers: Sequence[int], *, along: Along = "all") -> Dropped:
        """Delete, and overwrite the bytes. `along`: what goes with them; the rest of it is current again."""
        ...

    async def use(self, uses: Mapping[int, tuple[int, float]]) -> None:
        """Number -> (further uses, standing)."""
        ...

    async def compact(self) -> dict[int, Place]:
        """Give some disk space back; -> new places of what was moved. The old are readable until the next call."""
        ...

    async def spaces(self) -> list[tuple[str, HiddenSpace]]:
        """(fingerprint, space) of all that episodes were stored in."""
        ...

    async def keep_questions(self, kept: Sequence[KeptQuestion]) -> None: ...
    async def question(self, tenant: str, request_id: str) -> bytes | None:
        """The sketch that was kept; None when there is none."""
        ...

    def head(self, place: Place) -> bytes | None:
        """None when it is gone or damaged. From any thread."""
        ...

    def body(self, place: Place) -> memoryview | None:
        """In the memory map, perhaps with bytes behind its end; None when it is gone or damaged."""
        ...


@runtime_checkable
class KeepsEpisodes(Protocol):
    """A `protocols.Store` that keeps episodes, too."""

    @property
    def episode_store(self) -> EpisodeStore: ...
