"""`sona.engine` as the engine's own configuration."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from ..config.settings import Settings
from ..engine import SonaConfig
from ..errors import ConfigError

__all__ = ["engine_config", "outside_guide"]

# The guide's "Quick Start": what a proxy learns with when `sona.engine` says nothing.
_QUICK_START = {"micro_lora_rank": 2, "base_lora_rank": 8, "micro_lora_lr": 0.001, "quality_threshold": 0.4}

_PROFILES: dict[str, Callable[[int], SonaConfig]] = {
    "realtime": SonaConfig.realtime,
    "batch": SonaConfig.batch,
    "research": SonaConfig.research,
    "edge": SonaConfig.edge,
}
_SIZES = ("hidden_dim", "embedding_dim")


def engine_config(settings: Settings, dim: int, *, compiled: bool = True) -> SonaConfig:
    """The guide's quick start or one of its profiles, with single fields changed; both dimensions are those of the
    vectors the engine will see. ``compiled``: the default of `enable_simd`. Raises ConfigError.
    """
    try:
        profile, fields = _given(settings)
        chosen = _QUICK_START if profile is None else _PROFILES[profile](dim).to_dict()
        chosen = {**chosen, "enable_simd": compiled}
        return SonaConfig(**{**chosen, **fields, "hidden_dim": dim, "embedding_dim": dim}, warn=False)
    except ConfigError as error:
        raise ConfigError(f"sona.engine: {error}") from error


def outside_guide(settings: Settings) -> list[str]:
    """What the guide would warn of, of the fields that `sona.engine` sets itself."""
    _, fields = _given(settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SonaConfig(hidden_dim=3072, **fields)
    return [f"sona.engine: {warning.message}" for warning in caught]


def _given(settings: Settings) -> tuple[str | None, dict[str, Any]]:
    given = dict(settings.sona.engine)
    profile = given.pop("profile", None)
    if profile is not None and not (isinstance(profile, str) and profile in _PROFILES):
        raise ConfigError(f"profile must be one of {', '.join(_PROFILES)}, not {profile!r}")
    fields: dict[str, Any] = {}
    for key, value in given.items():
        name = SonaConfig.field_name(key)
        if name in _SIZES:
            raise ConfigError(f"{key} cannot be set: it comes from the model")
        if name in fields:
            raise ConfigError(f"{name} is given twice")
        fields[name] = value
    return profile, fields
