"""What the rooms know, as plain values for the admin pages."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ..engine import LearnedPattern, RouteStats

__all__ = ["pattern_view"]


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


def _told(stats: RouteStats) -> dict[str, float]:
    """Without what was never told (NaN is not JSON)."""
    return {name: value for name, value in dataclasses.asdict(stats).items() if not math.isnan(value)}
