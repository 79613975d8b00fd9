"""What the rooms know, as plain values for the admin pages."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ..engine import LearnedPattern, RouteStats
from ..episodes import Episode

__all__ = ["episode_view", "pattern_view"]


def pattern_view(tenant: str, pattern: LearnedPattern) -> dict[str, Any]:
    """One learned pattern of a tenant without its centroid; ids are unique within a tenant."""
    return {
        "tenant": tenant,
        "id": pattern.id,
        "pattern_type": pattern.pattern_type,
        "cluster_size": pattern.cluster_size,
        "avg_quality": round(pattern.avg_quality, 4),
        "total_weight": round(pattern.total_weight, 2),
        "created_at": pattern.created_at,
        "last_accessed": pattern.last_accessed,
        "access_count": pattern.access_count,
        "routes": {model: _told(stats) for model, stats in pattern.routes.items()},
    }


def episode_view(episode: Episode, *, fits: bool | None, expires_at: float) -> dict[str, Any]:
    """Who said it, when, about which request, and who has it; what was said only where text is kept.

    ``fits``: whether it was made for the model that answers now; None: none answers. One that does not fit is not
    used; a ``renewable`` one is then made anew.
    """
    return {
        "key": episode.key,
        "number": episode.number,
        "model": episode.model,
        "fits": fits,
        "renewable": episode.renewable,
        "scope": episode.scope,
        "tenant": episode.tenant,
        "user": episode.user,
        "key_id": episode.key_id,
        "person": episode.person,
        "kind": episode.kind,
        "request_id": episode.request_id,
        "feedback_id": episode.feedback_id,
        "created_at": episode.created_at,
        "expires_at": expires_at,
        "promoted_by": episode.promoted_by,
        "promoted_at": episode.promoted_at,
        "used": episode.superseded_by is None,
        "uses": episode.uses,
        "tokens": episode.tokens,
        "answer_tokens": episode.answer_tokens,
        "bytes": episode.nbytes,
        "question": None if episode.question is None else episode.question.text,
        "answer": None if episode.text is None else episode.text.answer,
    }


def _told(stats: RouteStats) -> dict[str, float]:
    """Without what was never told (NaN is not JSON)."""
    return {name: value for name, value in dataclasses.asdict(stats).items() if not math.isnan(value)}
