"""The engine's parameters: the guide's eleven plus `embedding_dim`, and a few more with safe defaults.

Outside the guide's own range a value draws a `GuideRangeWarning`; outside the hard limits it is a `ConfigError`
(a `ValueError`) that names the field and its range.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from dataclasses import InitVar
from typing import Any, Literal, get_args

from ..errors import ConfigError

__all__ = ["DropPolicy", "GuideRangeWarning", "SonaConfig"]

DropPolicy = Literal["oldest", "newest"]


class GuideRangeWarning(UserWarning):
    """A value is allowed, but outside the range that the guide recommends."""


_INF = math.inf
# field: (low, high) inclusive. Whole-number fields are the ones whose default is an int (or that are required).
_HARD: dict[str, tuple[float, float]] = {
    "hidden_dim": (1, 65536),
    "embedding_dim": (1, 65536),
    "micro_lora_rank": (1, 2),
    "base_lora_rank": (1, 64),
    "micro_lora_lr": (0, _INF),
    "base_lora_lr": (0, _INF),
    "ewc_lambda": (0, _INF),
    "quality_threshold": (0, 1),
    "trajectory_capacity": (1, 1_000_000),
    "pattern_clusters": (1, 10_000),
    "background_interval_ms": (1, _INF),
    "flush_threshold": (1, 100_000),
    "min_trajectories": (1, 1_000_000),
    "max_delta_ratio": (1e-6, _INF),
    "trajectory_ttl_s": (1e-3, _INF),
    "pattern_similarity": (-1, 1),
    "pattern_half_life": (1, _INF),
    "seed": (0, 2**63 - 1),
}
_GUIDE: dict[str, tuple[float, float]] = {
    "hidden_dim": (64, 8192),
    "base_lora_rank": (4, 32),
    "trajectory_capacity": (100, 50_000),
    "pattern_clusters": (25, 200),
    "background_interval_ms": (60_000, _INF),
}
_FLOATS = {
    "micro_lora_lr",
    "base_lora_lr",
    "ewc_lambda",
    "quality_threshold",
    "max_delta_ratio",
    "trajectory_ttl_s",
    "pattern_similarity",
    "pattern_half_life",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SonaConfig:
    """Parameters of a `SonaEngine`; names and defaults are the guide's, in snake_case."""

    hidden_dim: int
    """Size of the vectors that `apply_*` and the trajectory steps take; must match the model."""
    embedding_dim: int = 0
    """Size of query embeddings; 0 becomes `hidden_dim`."""
    micro_lora_rank: int = 1
    base_lora_rank: int = 8
    micro_lora_lr: float = 0.001
    """Most that one trajectory may change the micro-LoRA's output: rms of |change of out(x)| / |x|."""
    base_lora_lr: float = 0.0001
    """The same for the base LoRA, per trajectory of a background cycle; and ten times this is the part of the way
    that one trajectory pulls the base towards the micro-LoRA."""
    ewc_lambda: float = 1000.0
    """Weight, in thousandths, of staying where earlier tasks left their own inputs; 0 = forget freely."""
    quality_threshold: float = 0.5
    """A trajectory below this never pulls towards its activations; it may still push away."""
    trajectory_capacity: int = 10_000
    pattern_clusters: int = 50
    background_interval_ms: int = 3_600_000
    enable_simd: bool = True
    """True: compiled kernels (numba, vectorised by LLVM). False: plain numpy; numba is never imported."""
    flush_threshold: int = 1
    """Trajectories gathered into one step of the micro-LoRA."""
    min_trajectories: int = 10
    """`tick` waits until this many are buffered (nothing is discarded); `force_learn` takes any number."""
    max_delta_ratio: float = 1.0
    """Bound on |out(x) - x| / |x| over recent inputs."""
    trajectory_ttl_s: float = 600.0
    """An open trajectory older than this is forgotten and counted as expired."""
    drop_policy: DropPolicy = "oldest"
    """What a full buffer gives up."""
    pattern_similarity: float = 0.75
    """A query less similar than this to every pattern opens a new one while there is room."""
    pattern_half_life: float = 10_000.0
    """Trajectories after which a pattern's counts have halved."""
    seed: int = 0
    warn: InitVar[bool] = True
    """False: no `GuideRangeWarning` (the guide's own edge profile is outside the guide's table)."""

    def __post_init__(self, warn: bool) -> None:
        """Checks every field; raises ConfigError naming field and range."""
        if self.embedding_dim == 0 and not isinstance(self.embedding_dim, bool):
            object.__setattr__(self, "embedding_dim", self.hidden_dim)
        for name, (low, high) in _HARD.items():
            _check_number(name, getattr(self, name), low, high)
        if not isinstance(self.enable_simd, bool):
            raise ConfigError(f"enable_simd must be true or false, not {self.enable_simd!r}")
        if self.drop_policy not in get_args(DropPolicy):
            raise ConfigError(f"drop_policy must be 'oldest' or 'newest', not {self.drop_policy!r}")
        if warn:
            _warn_outside_guide(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SonaConfig:
        """Takes the guide's camelCase keys and snake_case ones; an unknown or doubled key is a ConfigError."""
        chosen: dict[str, Any] = {}
        for key, value in values.items():
            name = cls.field_name(key)
            if name in chosen:
                raise ConfigError(f"engine parameter {name!r} is given twice")
            chosen[name] = value
        if "hidden_dim" not in chosen:
            raise ConfigError("hidden_dim is required: the size of the model's hidden states, 1 to 65536")
        return cls(**chosen)

    @classmethod
    def field_name(cls, key: str) -> str:
        """The field that a camelCase or snake_case key means; an unknown one is a ConfigError."""
        known = {field.name: field.name for field in dataclasses.fields(cls)}
        known |= {_camel(name): name for name in known.values()}
        if key not in known:
            raise ConfigError(f"unknown engine parameter {key!r}; known: {', '.join(sorted(set(known.values())))}")
        return known[key]

    def to_dict(self) -> dict[str, Any]:
        """Plain values by snake_case name; `from_dict` takes it back."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def realtime(cls, hidden_dim: int = 3072) -> SonaConfig:
        """The guide's profile "Real-Time Chat / Streaming"."""
        return cls(
            hidden_dim=hidden_dim,
            micro_lora_rank=2,
            base_lora_rank=4,
            micro_lora_lr=0.0005,
            quality_threshold=0.7,
            pattern_clusters=25,
            trajectory_capacity=500,
            enable_simd=True,
            warn=False,
        )

    @classmethod
    def batch(cls, hidden_dim: int = 3072) -> SonaConfig:
        """The guide's profile "Batch API Processing"."""
        return cls(
            hidden_dim=hidden_dim,
            micro_lora_rank=2,
            base_lora_rank=8,
            micro_lora_lr=0.001,
            quality_threshold=0.5,
            pattern_clusters=50,
            trajectory_capacity=5000,
            background_interval_ms=1_800_000,
            enable_simd=True,
            warn=False,
        )

    @classmethod
    def research(cls, hidden_dim: int = 3072) -> SonaConfig:
        """The guide's profile "Research / Fine-Tuning"."""
        return cls(
            hidden_dim=hidden_dim,
            micro_lora_rank=2,
            base_lora_rank=16,
            micro_lora_lr=0.002,
            base_lora_lr=0.0002,
            ewc_lambda=2000.0,
            quality_threshold=0.2,
            pattern_clusters=100,
            trajectory_capacity=10_000,
            background_interval_ms=900_000,
            enable_simd=True,
            warn=False,
        )

    @classmethod
    def edge(cls, hidden_dim: int = 3072) -> SonaConfig:
        """The guide's profile "Edge / Mobile Deployment"."""
        return cls(
            hidden_dim=hidden_dim,
            micro_lora_rank=1,
            base_lora_rank=4,
            micro_lora_lr=0.001,
            quality_threshold=0.6,
            pattern_clusters=15,
            trajectory_capacity=200,
            background_interval_ms=7_200_000,
            enable_simd=True,
            warn=False,
        )


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


def _range_text(low: float, high: float) -> str:
    return f"at least {low:g}" if high == _INF else f"in {low:.15g} to {high:.15g}"


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    kinds = (int, float) if name in _FLOATS else (int,)
    word = "a number" if name in _FLOATS else "a whole number"
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ConfigError(f"{name} must be {word} {_range_text(low, high)}, not {value!r}")
    if not (math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"{name} must be {word} {_range_text(low, high)}, not {value!r}")


def _warn_outside_guide(config: SonaConfig) -> None:
    for name, (low, high) in _GUIDE.items():
        value = getattr(config, name)
        if not low <= value <= high:
            message = f"{name} = {value} is outside the guide's range ({_range_text(low, high)})"
            warnings.warn(message, GuideRangeWarning, stacklevel=4)
