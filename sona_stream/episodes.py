"""The values of the memory of episodes: a question, and the states and tokens of the answer that belongs to it.

Shapes: ``T`` tokens of one answer, ``d`` hidden size of the model. Arrays only, no policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .lora import HiddenSpace

__all__ = [
    "Episode",
    "EpisodeEntry",
    "EpisodeKind",
    "EpisodeRecord",
    "EpisodeStates",
    "EpisodeStore",
    "EpisodeText",
    "NewEpisode",
    "Place",
    "Question",
    "QuestionVectors",
    "Scope",
    "Viewer",
    "person_of",
]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

Scope = Literal["person", "tenant", "global"]
EpisodeKind = Literal["correction", "accepted"]


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


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class QuestionVectors:
    """Of unit length, or zero for an empty text."""

    static: F32
    """(256,) of `Question.text` by the static table"""
    contextual: F32 | None = None
    """(384,) of `Question.text` by the contextual encoder; None where there is none"""
    system: F32 | None = None
    """(256,) of `Question.system` by the static table; None where that is empty"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeText:
    """What an episode is made anew from when the model changes. Kept at `sona.storage: text` only."""

    answer: str
    body: bytes | None = None
    """The request's JSON as the client sent it"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EpisodeRecord:
    """An answer to remember: who gave it, to what question, and what the unadapted model's states were on it."""

    model: str
    fingerprint: str
    tenant: str
    user: str | None = None
    key_id: str
    request_id: str
    feedback_id: str = ""
    kind: EpisodeKind = "correction"
    question: Question
    vectors: QuestionVectors
    hidden: F32
    """(T, d) of the unadapted pass: row t is the state that token t follows"""
    token_ids: I32
    """(T,)"""
    space: HiddenSpace
    text: EpisodeText | None = None
    created_at: float = 0.0
    """`time.time()` of the feedback; 0: now"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A remembered answer, as lists and headers show it: who, when, which request, which scope."""

    key: str
    """What `EpisodeRef.key` says; unique among all state folders"""
    number: int
    """counts up within the state folder"""
    model: str
    fingerprint: str
    scope: Scope
    tenant: str
    user: str | None
    key_id: str
    request_id: str
    feedback_id: str
    kind: EpisodeKind
    tokens: int
    """pairs that are kept"""
    answer_tokens: int
    """of the whole answer; more than `tokens` when it was longer than `sona.memory.max_tokens`"""
    nbytes: int
    created_at: float
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


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class EpisodeStates:
    """What a host is given: `host.put_episode(key, hidden, token_ids, space)`."""

    hidden: F32
    """(T, d) float32, through int8 with a scale per row in the standardised space"""
    token_ids: I32
    """(T,)"""
    space: HiddenSpace


class Place(NamedTuple):
    """Where an episode's bytes are."""

    segment: int
    offset: int
    length: int


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
    data: bytes
    space: HiddenSpace
    rank: int | None = None
    """None: the newest"""


class EpisodeStore(Protocol):
    """Where episodes are kept. Writes are durable when they return: the bytes first, then the row that names them.

    Every write is one transaction. `SqliteStore` is one; the memory has another that lives in RAM.
    """

    async def put_episode(
        self, new: NewEpisode, *, supersede: Sequence[int] = (), replace: int | None = None
    ) -> EpisodeEntry:
        """`supersede`: numbers that this one takes the place of. `replace`: a number that goes, whose place among
        the superseded this one takes.
        """
        ...

    async def episode_entries(self, *, after: int, limit: int) -> list[EpisodeEntry]:
        """By number, those above `after`."""
        ...

    async def episodes(self, numbers: Sequence[int] | None = None, *, tenant: str | None = None) -> list[Episode]:
        """By number. None: all."""
        ...

    async def move_episode(
        self, number: int, *, scope: Scope, by: str, supersede: Sequence[int] = ()
    ) -> EpisodeEntry:
        """Into a wider scope, as the newest there."""
        ...

    async def drop_episodes(self, numbers: Sequence[int], *, revive: bool) -> list[int]:
        """Delete, and overwrite the bytes. What they superseded returns (`revive`) or goes, too.

        -> the numbers deleted
        """
        ...

    async def use_episodes(self, uses: Mapping[int, tuple[int, float]]) -> None:
        """Number -> (uses since the last call, standing)."""
        ...

    async def compact_episodes(self) -> dict[int, Place]:
        """Give disk space back; -> the new places of what was moved."""
        ...

    async def hidden_space(self, fingerprint: str, version: str) -> HiddenSpace | None: ...

    def episode_bytes(self, place: Place) -> memoryview | None:
        """Of a segment, memory-mapped; None when they are not there. May be called from any thread."""
        ...

    def episode_key(self, number: int) -> str: ...
