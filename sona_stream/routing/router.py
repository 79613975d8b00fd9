"""From a request to a `RouteDecision`: look the query up among the patterns, then let the policy choose.

How a pattern gets its type: the classifier names the type of each query (`RouteDecision.query_type`); the engine
counts these votes in the pattern that the query's trajectory joins (context ``pattern_type``). The rule then reads
the pattern's type, learned from many queries, not the opinion on one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config.entries import AUTO
from ..config.settings import Settings
from ..errors import ConfigError, NotFound
from ..events import PATTERN_TYPES, Request, RouteDecision
from ..protocols import Embedder, LearnedPattern, PatternIndex
from .models import Discover, ModelCatalog
from .pattern_type import TypeClassifier, TypeVote
from .policy import Choice, Policy, QueryView, create_policy

__all__ = ["Patterns", "PolicyRouter", "create_router"]

Patterns = Callable[[str], Awaitable[PatternIndex]]
"""A tenant's patterns. No tenant learns from another's, nor sees by a similarity what another asked."""

_NEIGHBOURS = 3
_REMEMBERED = 1024
_REMEMBERED_CHARS = 2048
_UNKNOWN = TypeVote(type="General", probability=0.0, probabilities=dict.fromkeys(PATTERN_TYPES, 0.0))


@dataclasses.dataclass(frozen=True, slots=True)
class _Located:
    vote: TypeVote
    patterns: tuple[LearnedPattern, ...]
    matched: LearnedPattern | None
    view: QueryView


class PolicyRouter:
    """A `Router`. Stateless itself: what is learned lives in each tenant's `PatternIndex`."""

    def __init__(
        self,
        *,
        models: ModelCatalog,
        policy: Policy,
        embedder: Embedder,
        type_embedder: Embedder | None,
        patterns: Patterns,
        classifier: TypeClassifier,
        min_similarity: float,
    ) -> None:
        self._models = models
        self._policy = policy
        self._embedder = embedder
        self._type_embedder = type_embedder
        self._patterns = patterns
        self._classifier = classifier
        self._min_similarity = min_similarity
        self._votes: dict[str, TypeVote] = {}

    async def route(self, request: Request) -> RouteDecision:
        """Uses `request.embedding`; without one no pattern is looked up. A named model is used as asked.

        Raises NotFound for a model that is not there, ValueError for an embedding of the wrong length.
        """
        located = await self._locate(request.query, request.embedding, request.principal.tenant)
        return self._decision(await self._choose(request.model, located.view), located)

    async def explain(self, query: str, model: str = AUTO, *, tenant: str = "default") -> dict[str, Any]:
        """The decision on this tenant's `query` with all that led to it, as plain values (for `sona-stream route`
        and `/why`).
        """
        embedding = (await self._embedder.embed([query]))[0] if query else None
        located = await self._locate(query, embedding, tenant)
        decision = self._decision(await self._choose(model, located.view), located)
        return {
            "model": decision.model,
            "reason": decision.reason,
            "pattern": decision.pattern,
            "pattern_type": decision.pattern_type,
            "similarity": decision.similarity,
            "propensity": decision.propensity,
            "fallbacks": list(decision.fallbacks),
            "query_type": located.vote.type,
            "query_type_probabilities": {kind: round(p, 3) for kind, p in located.vote.probabilities.items()},
            "nearest_patterns": [
                {
                    "id": pattern.id,
                    "type": pattern.pattern_type,
                    "similarity": round(float(pattern.similarity), 4),
                    "avg_quality": round(float(pattern.avg_quality), 4),
                    "cluster_size": pattern.cluster_size,
                }
                for pattern in located.patterns
            ],
        }

    async def _choose(self, model: str, view: QueryView) -> Choice:
        if model == AUTO:
            await self._models.refresh()
            return self._policy.choose(view)
        if not self._models.knows(model):
            raise NotFound(f"the model {model!r} does not exist (there: {', '.join((AUTO, *self._models.names))})")
        return Choice(model=model, reason="named")

    async def _locate(self, query: str, embedding: NDArray[np.float32] | None, tenant: str) -> _Located:
        vote = await self._vote(query, embedding)
        patterns = await self._nearest(embedding, tenant)
        matched = patterns[0] if patterns and patterns[0].similarity >= self._min_similarity else None
        located = embedding is not None and bool(embedding.any())
        return _Located(
            vote, patterns, matched, QueryView(located=located, patterns=patterns, query_type=vote.type)
        )

    async def _nearest(self, embedding: NDArray[np.float32] | None, tenant: str) -> tuple[LearnedPattern, ...]:
        if embedding is None:
            return ()
        if embedding.shape != (self._embedder.dim,):
            raise ValueError(f"embedding must have shape ({self._embedder.dim},), got {embedding.shape}")
        if not embedding.any():  # a text without any known word: a zero vector is near nothing
            return ()
        index = await self._patterns(tenant)
        return tuple(index.find_patterns(index.apply_micro_lora(embedding), _NEIGHBOURS))

    async def _vote(self, query: str, embedding: NDArray[np.float32] | None) -> TypeVote:
        if not query:
            return _UNKNOWN
        known = self._votes.get(query)
        if known is not None:
            return known
        if self._type_embedder is not None:
            embedding = (await self._type_embedder.embed([query]))[0]
        if embedding is None:
            return _UNKNOWN
        return self._remember(query, self._classifier.classify(query, embedding))

    def _remember(self, query: str, vote: TypeVote) -> TypeVote:
        """A vote depends on the query alone, and templates, retries and evaluations repeat queries."""
        if len(query) <= _REMEMBERED_CHARS:
            if len(self._votes) >= _REMEMBERED:
                del self._votes[next(iter(self._votes))]
            self._votes[query] = vote
        return vote

    def _decision(self, choice: Choice, located: _Located) -> RouteDecision:
        matched = located.matched
        return RouteDecision(
            model=choice.model,
            reason=choice.reason,
            pattern=matched.id if matched else None,
            pattern_type=matched.pattern_type if matched else located.vote.type,
            query_type=located.vote.type,
            similarity=float(located.patterns[0].similarity) if located.patterns else None,
            propensity=choice.propensity,
            fallbacks=self._models.fallbacks(choice.model),
        )


def create_router(
    settings: Settings,
    embedder: Embedder,
    patterns: Patterns,
    classifier: TypeClassifier,
    *,
    type_embedder: Embedder | None = None,
    discover: Discover | None = None,
) -> PolicyRouter:
    """`type_embedder` is the embedder the classifier was trained with; needed only when `embedder` is another.
    `discover`: see `ModelCatalog`.

    Raises ConfigError for an unknown policy, model or pattern type, or when the classifier has no embedder.
    """
    if embedder.name == classifier.embedder:
        type_embedder = None
    elif type_embedder is None or type_embedder.name != classifier.embedder:
        raise ConfigError(
            f"the pattern type classifier reads the embeddings of {classifier.embedder!r}, not of "
            f"{embedder.name!r}: pass the former as type_embedder"
        )
    models = ModelCatalog(settings, discover)
    routing = settings.sona.routing
    return PolicyRouter(
        models=models,
        policy=create_policy(routing, models),
        embedder=embedder,
        type_embedder=type_embedder,
        patterns=patterns,
        classifier=classifier,
        min_similarity=routing.min_similarity,
    )
