"""What travels through the house: a `Request` goes down; `Head`, `Delta`, `Finish` come up.

All are frozen values. Nothing here knows how anything is sent. Times are ``time.time()`` seconds unless a
name says otherwise.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "PATTERN_TYPES",
    "AdapterRef",
    "CallPart",
    "Delta",
    "Endpoint",
    "EpisodeRef",
    "Event",
    "Feedback",
    "FeedbackOutcome",
    "Finish",
    "Head",
    "Headers",
    "PatternType",
    "Piece",
    "Principal",
    "Request",
    "Role",
    "RouteDecision",
    "Sampling",
    "Score",
    "Trajectory",
    "Usage",
    "pupil",
]

Headers = tuple[tuple[bytes, bytes], ...]
"""Header pairs as ASGI has them: names in lower case."""

Endpoint = Literal["chat.completions", "completions"]
Role = Literal["use", "teach", "admin"]
PatternType = Literal["CodeGen", "Reasoning", "Factual", "Creative", "Conversational", "General"]
PATTERN_TYPES: tuple[PatternType, ...] = (
    "CodeGen",
    "Reasoning",
    "Factual",
    "Creative",
    "Conversational",
    "General",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks. ``tenant`` comes from the key, never from the client's body."""

    tenant: str = "default"
    key_id: str = "anonymous"
    roles: frozenset[Role] = frozenset({"use", "teach", "admin"})
    trusted_gateway: bool = False
    user: str | None = None
    """The end user, only as asserted by a trusted gateway."""


def pupil(tenant: str, user: str | None) -> str:
    """Whose an answer's lessons are: the tenant's, or one end user's, by a name that does not show the person.

    No tenant's own name holds a colon.
    """
    if user is None:
        return tenant
    return f"{tenant}:{hashlib.blake2b(user.encode('utf-8', 'surrogatepass'), digest_size=8).hexdigest()}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """OpenAI's sampling parameters, decoded; None is "the backend's own default"."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1
    """In 1..128, the nearest to what was asked for: choices are made here by its count."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    """Number of top log-probabilities asked for by the client; 0 = only the token's own; None = not asked."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRef:
    """A published adapter: ``key`` is ``model/tenant/group``, ``version`` counts from 1.

    ``pinned`` asks the host for exactly this version; otherwise a newer one may take over between tokens.
    """

    key: str
    version: int
    pinned: bool = False

    def __str__(self) -> str:
        return f"{self.key}@{self.version}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRef:
    """A remembered answer that a request may draw on. An episode that is not on the host is no error."""

    key: str
    gate: float
    """in (0, 1]: how near its query is; weighs its states' similarities"""
    share: float = 1.0
    """in (0, 1]: of what a correction may decide at a token, how much this one may"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RouteDecision:
    """Which model answers, and why. ``fallbacks`` are tried in order before the first byte."""

    model: str
    reason: str
    pattern: str | None = None
    pattern_type: PatternType = "General"
    """Type of the matched pattern; without one, `query_type`."""
    query_type: PatternType = "General"
    """What the type classifier says of this query alone: the vote that a trajectory casts for its pattern."""
    similarity: float | None = None
    propensity: float = 1.0
    fallbacks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question on its way to a backend. Stages hand on changed copies (`dataclasses.replace`)."""

    id: str
    endpoint: Endpoint
    model: str
    """As the client named it until the route stage has run; then the deployment's ``model_name``."""
    requested_model: str = ""
    """As the client named it, for the record."""
    body: bytes
    """The client's JSON, verbatim. A backend may replace ``model`` in it and nothing else."""
    messages: tuple[Mapping[str, Any], ...] = ()
    prompt: str | tuple[int, ...] | None = None
    query: str = ""
    """The text that routing looks at: the last user message, or the prompt."""
    stream: bool = False
    include_usage: bool = False
    sampling: Sampling = Sampling()
    objections: tuple[tuple[str, str], ...] = ()
    """(field, what is wrong with it) by OpenAI's reference, or because ``sampling`` has no place for it. Upstreams
    judge for themselves; a backend that samples itself raises the first as InvalidRequest, but for fields that it
    reads from ``body``: ``sampling`` may hold anything then.
    """
    constrained: bool = False
    """Tools or a JSON schema were given."""
    principal: Principal = Principal()
    headers: Headers = ()
    client_ids: tuple[str, ...] = ()
    """Ids the client sent for this request (`x-request-id`, `metadata`): feedback may name them."""
    adapt: bool = True
    learn: bool = True
    pinned: AdapterRef | None = None
    """Adapter version asked for by `x-sona-adapt`."""
    route: RouteDecision | None = None
    adapter: AdapterRef | None = None
    episodes: tuple[EpisodeRef, ...] = ()
    """Remembered answers that a host mixes in at the logits."""
    embedding: NDArray[np.float32] | None = None
    """Query embedding (e,), L2-normalised."""
    received_at: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts as OpenAI names them."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Sum of both."""
        return self.prompt_tokens + self.completion_tokens


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The backend accepted: first event of every stream. ``headers`` are the upstream's, for forwarding."""

    model: str
    """The deployment (`model_name`) that answers."""
    status: int = 200
    headers: Headers = ()
    adapter: AdapterRef | None = None
    bare_reason: str = ""
    """Why the request was not adapted though there are adapters."""
    episodes: tuple[EpisodeRef, ...] = ()
    """Remembered answers that this one may draw on, best first."""
    route: RouteDecision | None = None
    """Stamped by the fallback stage: what the server's `x-sona-*` headers and the record stage report."""
    prompt_ids: tuple[int, ...] = ()
    """Token ids of the prompt, where the backend knows them."""
    no_capture: str = ""
    """Why the host holds nothing of this answer, where that is known before it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CallPart:
    """An increment of one tool call: a name comes once, arguments in parts."""

    index: int = 0
    name: str = ""
    arguments: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One parsed increment of one choice. ``logprobs`` are natural, one a token, where they are known."""

    index: int = 0
    text: str = ""
    reasoning: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[Mapping[str, float], ...] = ()
    finish_reason: str | None = None
    calls: tuple[CallPart, ...] = ()
    """Of tool calls, where a backend's answers have them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """Bytes as they came from an upstream, the pieces completed by them, or both.

    ``raw`` is what the upstream sent, cut anywhere; the server writes it verbatim. When it is None the
    server encodes ``pieces``. A stage that changes pieces sets ``raw`` to None.
    """

    pieces: tuple[Piece, ...] = ()
    raw: bytes | None = None
    completion_id: str | None = None
    """The ``id`` inside the answer's body, where ``raw`` brings it and as soon as it is known."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Quality in [0, 1] with its parts, each in [0, 1]. ``value`` is None when no scorer could judge."""

    value: float | None = None
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """A clean end: last event. A stream that breaks raises instead."""

    reason: str | None = None
    usage: Usage | None = None
    completion_id: str | None = None
    """The ``id`` inside the answer's body, so that feedback may name it."""
    raw: bytes | None = None
    score: Score | None = None
    """Added by the score stage."""


Event = Head | Delta | Finish


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """What one answered request left behind. Text and token ids are there only as `sona.storage` allows."""

    request_id: str
    tenant: str
    key_id: str
    user: str | None = None
    endpoint: Endpoint = "chat.completions"
    requested_model: str = ""
    model: str = ""
    route: RouteDecision | None = None
    adapter: AdapterRef | None = None
    client_ids: tuple[str, ...] = ()
    completion_id: str | None = None
    embedding: NDArray[np.float32] | None = None
    prompt_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    query: str | None = None
    body: bytes | None = None
    answer: str | None = None
    sampling: Sampling = Sampling()
    score: Score = Score()
    finish_reason: str | None = None
    usage: Usage | None = None
    learn: bool = True
    no_capture: str = ""
    """Why nothing of this answer was captured, whatever adapter it was meant to have; empty: nothing is known."""
    outcome: Literal["complete", "cancelled", "failed"] = "complete"
    started_at: float = 0.0
    ttft_s: float | None = None
    duration_s: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """One judgement of one answer. Exactly one of quality / correction is set; quality is in [0, 1]."""

    id: str
    request_id: str
    tenant: str
    key_id: str
    user: str | None = None
    kind: Literal["rating", "metric", "correction", "score"]
    quality: float | None = None
    metric_name: str | None = None
    value: float | None = None
    correction: str | None = None
    idempotency_key: str | None = None
    created_at: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackOutcome:
    """What became of a feedback: ``published`` a new version, ``accepted`` (waits for replay or only moved
    statistics), ``gated`` (a gate said no), ``skipped`` (learning is off, nothing is to be adapted, or it was taken
    back).
    """

    feedback_id: str
    status: Literal["queued", "published", "accepted", "gated", "skipped"]
    reason: str = ""
    adapter: AdapterRef | None = None
