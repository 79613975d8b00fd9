"""The interfaces that rooms and adapters meet through. No implementation lives here.

One interface carries the main path: a backend, a stage, and the whole pipeline are all a `Handler`. Leaving
the stream's block is the cancellation, and it reaches the backend.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .events import (
    AdapterRef,
    Delta,
    EpisodeRef,
    Event,
    Feedback,
    FeedbackOutcome,
    Finish,
    Headers,
    PatternType,
    Request,
    RouteDecision,
    Trajectory,
)
from .hosting import HiddenStateHost, LayeredHost, RetainingHost
from .lora import AdapterRecord, Capture
from .storing import AdapterLister, Store, Writes

__all__ = [
    "AdapterLister",
    "AdapterResolver",
    "AnswerAuditor",
    "Backend",
    "Closable",
    "Embedder",
    "EpisodeRecall",
    "EventStream",
    "Exporter",
    "FeedbackSink",
    "Handler",
    "HiddenStateHost",
    "HookReporter",
    "HostReporter",
    "LayeredHost",
    "LearnedPattern",
    "Middleware",
    "ModelLister",
    "PatternIndex",
    "RetainingHost",
    "Router",
    "Scorer",
    "Scoring",
    "Store",
    "TrajectorySink",
    "Writes",
]

EventStream = AbstractAsyncContextManager[AsyncIterator[Event]]


class Handler(Protocol):
    """Takes a request down, brings `Head`, `Delta`..., `Finish` up."""

    def __call__(self, request: Request, /) -> EventStream: ...


Middleware = Callable[[Handler], Handler]


@runtime_checkable
class Backend(Protocol):
    """One deployment of `model_list`: a `Handler` with a lifetime. ``async with backend:`` starts it. One that
    samples itself raises the first of `Request.objections`, but for fields that it serves, as InvalidRequest.
    """

    name: str
    """The deployment's ``model_name``."""
    adaptable: bool
    """Whether `host` will be there once the model answers."""

    def __call__(self, request: Request, /) -> EventStream: ...
    async def __aenter__(self) -> Backend: ...
    async def __aexit__(self, *exc: object) -> None: ...
    async def probe(self) -> None:
        """Returns when the model would answer; raises NotReady or UpstreamError when not."""
        ...

    async def embeddings(self, body: bytes, headers: Headers = ()) -> tuple[int, Headers, bytes]:
        """`/v1/embeddings` with the model's name replaced: (status, headers, body). ``headers``: the client's.
        Raises UpstreamError, NotReady: then the model's next deployment is asked.
        """
        ...

    @property
    def host(self) -> HiddenStateHost | None:
        """None when this backend's hidden states are out of reach."""
        ...


@runtime_checkable
class HostReporter(Protocol):
    """A backend whose model may answer although its hidden states are out of reach."""

    @property
    def host_problem(self) -> str:
        """Why `host` is None, for good or until the next probe; empty when nothing is known to be wrong."""
        ...


@runtime_checkable
class AnswerAuditor(Protocol):
    """A backend that learns after an answer's head that it was not served as the head said."""

    def take_unserved(self) -> Mapping[str, str]:
        """Request id -> why its adapter did not serve it all; each is told once. Ids may be other programs'."""
        ...


@runtime_checkable
class HookReporter(Protocol):
    """A backend whose model runs elsewhere with a hook of ours in it."""

    def hook_stats(self) -> Mapping[str, float | str]:
        """What the hook counted when it was last asked, by name; ``disabled`` is a text, empty while it works. An
        empty mapping while it is out of reach.
        """
        ...


@runtime_checkable
class ModelLister(Protocol):
    """What a backend behind the wildcard can do besides: say which names it answers to."""

    async def list_models(self) -> tuple[str, ...]:
        """In the upstream's order. Raises UpstreamError or NotReady."""
        ...


@runtime_checkable
class Closable(Protocol):
    """Holds connections that a program gives back when it ends."""

    async def aclose(self) -> None: ...


class Embedder(Protocol):
    """Text to unit vectors. One that is also `Closable` is closed with the program."""

    name: str
    dim: int

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n,) texts -> (n, dim), rows L2-normalised; an empty text gives a zero row."""
        ...


class Router(Protocol):
    """A policy: which deployment answers this request, and why."""

    async def route(self, request: Request) -> RouteDecision: ...


class LearnedPattern(Protocol):
    """What the engine's pattern bank says about one pattern (see `engine.patterns`)."""

    @property
    def id(self) -> str: ...
    @property
    def similarity(self) -> float: ...
    @property
    def avg_quality(self) -> float: ...
    @property
    def cluster_size(self) -> int: ...
    @property
    def pattern_type(self) -> PatternType: ...


class PatternIndex(Protocol):
    """The part of `SonaEngine` that routing needs."""

    def find_patterns(
        self, query: NDArray[np.float32], k: int, min_similarity: float | None = None
    ) -> Sequence[LearnedPattern]: ...
    def apply_micro_lora(self, x: NDArray[np.float32]) -> NDArray[np.float32]: ...


class AdapterResolver(Protocol):
    """Which adapter a routed request uses: the finest published level of its key chain, or None."""

    def resolve(self, request: Request) -> AdapterRef | None: ...
    def bare_reason(self, request: Request) -> str:
        """Why `resolve` gave the request none; empty: there is none."""
        ...

    def at_hand(self, request: Request, adapter: AdapterRef) -> bool:
        """Whether the model's host holds it. Takes microseconds."""
        ...

    async def bring(self, request: Request, adapter: AdapterRef) -> None:
        """Put it on the host again, from which it had to leave for others. One that cannot be brought is logged
        and counted, and the request goes without. Raises HostAway.
        """
        ...


class EpisodeRecall(Protocol):
    """Which remembered answers a routed request may draw on."""

    def concerns(self, request: Request) -> bool:
        """Whether there may be any. Takes microseconds, and what it says no to pays nothing more."""
        ...

    async def recall(self, request: Request) -> tuple[EpisodeRef, ...]:
        """Best first, each of them on the model's host when this returns. Never raises for want of one."""
        ...


class TrajectorySink(Protocol):
    """Takes finished trajectories off the hot path. Never blocks; what it must drop it counts."""

    def submit(self, trajectory: Trajectory) -> None: ...


class FeedbackSink(Protocol):
    """Takes feedback that is already durable. ``wait`` returns what became of it; else "queued"."""

    async def learn(self, feedback: Feedback, *, wait: bool = False) -> FeedbackOutcome: ...


class Scoring(Protocol):
    """One answer being judged, increment by increment."""

    def push(self, delta: Delta) -> None: ...
    def finish(self, finish: Finish | None) -> float | None:
        """In [0, 1]; None when this scorer cannot judge. ``finish`` is None for a broken or cancelled answer."""
        ...


class Scorer(Protocol):
    """Begins a `Scoring` for each request. ``weight`` is its share in the combined quality."""

    name: str
    weight: float

    def begin(self, request: Request) -> Scoring: ...


class Exporter(Protocol):
    """Writes one adapter version so that programs without this one can serve it. Blocks."""

    def __call__(
        self, record: AdapterRecord, *, model: str, out: Path, captures: Callable[[], Sequence[Capture]]
    ) -> Sequence[str]:
        """-> what to tell the person, line by line. ``model``: a folder, a pulled model's name or a hub id.
        ``captures``: reads the judged answers kept under the key.

        Raises ModelUnavailable, HostError (another model's fingerprint: names both), InvalidRequest (``out``).
        """
        ...
