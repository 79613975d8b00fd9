"""What the pattern bank answers with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ..events import PatternType
from .arrays import F32

__all__ = ["LearnedPattern", "RouteStats"]


@dataclasses.dataclass(frozen=True, slots=True)
class RouteStats:
    """How one model did on one pattern: means over decayed counts. NaN: never told."""

    count: float
    avg_quality: float
    avg_cost: float
    avg_latency_s: float


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class LearnedPattern:
    """One pattern, as of the moment it was asked for."""

    id: str
    centroid: F32
    """(e,) unit vector; a copy"""
    cluster_size: int
    """queries that ever joined"""
    total_weight: float
    """the same, decayed with `pattern_half_life`"""
    avg_quality: float
    """in [0, 1], decayed"""
    created_at: float
    last_accessed: float
    access_count: int
    """how often `find_patterns` returned it"""
    pattern_type: PatternType
    similarity: float
    """cosine to the query"""
    routes: Mapping[str, RouteStats]
    """by model"""
