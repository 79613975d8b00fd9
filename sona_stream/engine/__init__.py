"""The engine: adapters, trajectories and patterns for vectors; usable alone, without a language model."""

from __future__ import annotations

from ..config.engine import GuideRangeWarning, SonaConfig
from .pattern import LearnedPattern, RouteStats
from .sona import SonaEngine

__all__ = ["GuideRangeWarning", "LearnedPattern", "RouteStats", "SonaConfig", "SonaEngine"]
