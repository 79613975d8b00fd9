"""A scorer's share in the combined quality."""

from __future__ import annotations

import math

from ..config.settings import ScoringSettings
from ..errors import ConfigError

__all__ = ["weight_of"]


def weight_of(name: str, settings: ScoringSettings | None, default: float) -> float:
    """What `sona.scoring.weights` says, else `default`. Raises ConfigError unless it is finite and >= 0."""
    weight = default if settings is None else settings.weights.get(name, default)
    if not (math.isfinite(weight) and weight >= 0):
        raise ConfigError(f"sona.scoring.weights.{name} is {weight}; it must be a number >= 0")
    return float(weight)
