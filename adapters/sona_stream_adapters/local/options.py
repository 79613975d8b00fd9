"""What `litellm_params` may say about a local model."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, Literal

from sona_stream.errors import ConfigError

__all__ = ["LocalOptions", "parse_options"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    """Limits of one model in this process. Defaults of sampling are the model's own where they are None."""

    max_batch: int = 16
    """answers decoded together; more wait"""
    threads: int = 0
    """of torch while answers stream; 0 = all cores but one, which the event loop needs"""
    max_tokens: int = 512
    """of an answer whose request names no limit"""
    temperature: float | None = None
    top_p: float | None = None
    kv_cache_mb: int = 2048
    """memory of keys and values; requests that do not fit wait"""
    logit_cache_mb: int = 1024
    """memory of base logits kept for learning"""
    adapter_mb: int = 256
    """memory of adapters at hand; one that had to leave is read again when a request names it. One of rank 2 and
    base rank 8 takes 46 kB of a model 576 wide"""
    episode_mb: int = 64
    """memory of remembered answers at hand; 64 tokens of a model 576 wide take 74 kB. Answers under way keep those
    that they draw on until they end, beside this bound"""
    episode_share: float = 0.998
    """the most that memory may say of a token's probability"""
    episode_threshold: float = 0.3
    """the cosine of the hidden states (times the gate) at which memory says half of that; a twentieth less for each
    of the last four tokens that were said as remembered"""
    layers: Literal["all"] | tuple[int, ...] | None = None
    """research: decoder layers, counted from 0, on whose output each adapter has a pair of its own"""
    layer_rank: int = 2
    """of these pairs"""

    @property
    def streaming_threads(self) -> int:
        """Torch's threads while answers stream."""
        return self.threads or max(1, _cores() - 1)

    @property
    def idle_threads(self) -> int:
        """Torch's threads for learning while nothing streams."""
        return self.threads or _cores()


_LIMITS = {
    "max_batch": (1, 256),
    "threads": (0, 1024),
    "max_tokens": (1, 1_000_000),
    "temperature": (0.0, 2.0),
    "top_p": (1e-6, 1.0),
    "kv_cache_mb": (1, 1_000_000),
    "logit_cache_mb": (0, 1_000_000),
    "adapter_mb": (1, 1_000_000),
    "episode_mb": (0, 1_000_000),
    "episode_share": (0.0, 0.999),
    "episode_threshold": (-1.0, 1.0),
    "layer_rank": (1, 256),
}


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_options(params: Mapping[str, Any], *, model_name: str) -> LocalOptions:
    """Raises ConfigError naming the entry, the field and its range."""
    numbers = {name: value for name, value in params.items() if name != "layers"}
    for name, value in numbers.items():
        if name not in _LIMITS:
            raise ConfigError(
                f"model_list entry {model_name!r}: litellm_params.{name} is unknown to the local backend "
                f"(known: {', '.join([*_LIMITS, 'layers'])})"
            )
        low, high = _LIMITS[name]
        kind = float if isinstance(low, float) else int
        number = isinstance(value, int | kind) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not low <= value <= high:
            raise ConfigError(
                f"model_list entry {model_name!r}: litellm_params.{name} must be "
                f"{'a number' if kind is float else 'a whole number'} in {low}..{high}, not {value!r}"
            )
    return LocalOptions(layers=_layers(params.get("layers"), model_name), **numbers)


def _layers(value: Any, model_name: str) -> Literal["all"] | tuple[int, ...] | None:
    if value is None:
        return None
    if value == "all":
        return "all"
    whole = isinstance(value, list | tuple) and all(type(one) is int and one >= 0 for one in value)
    if not whole or not value or len(set(value)) < len(value):
        raise ConfigError(
            f"model_list entry {model_name!r}: litellm_params.layers must be 'all' or a list of different layer "
            f"numbers from 0 on, as [0, 5, 29], not {value!r}"
        )
    return tuple(sorted(value))
