"""What `litellm_params` may say about an engine in this process."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from sona_stream.config.settings import Deployment
from sona_stream.errors import ConfigError

__all__ = ["InProcessOptions", "parse_options"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InProcessOptions:
    """Checked, but for the names in ``engine_args``, which only vLLM knows."""

    engine_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """those of vLLM, as for ``vllm serve`` (max_model_len, dtype, enforce_eager, ...)"""
    max_tokens: int | None = None
    """of an answer whose request names no limit; None: what the context leaves"""
    temperature: float | None = None
    """of a request that names none; None: the model's own"""
    top_p: float | None = None
    fetch_hidden: bool = False
    """hidden states are kept in this process; else they stay with the engine, and what it no longer holds is
    encoded again from its token ids"""


_RANGES = {"max_tokens": (1, 10_000_000), "temperature": (0.0, 2.0), "top_p": (1e-6, 1.0)}
_OURS = {
    "model": "litellm_params.model names the model",
    "skip_tokenizer_init": "adapters are made for a model with its tokenizer",
    "worker_cls": "the hook needs vLLM's own workers",
}


def parse_options(deployment: Deployment) -> InProcessOptions:
    """Raises ConfigError naming the entry, the field and its range."""
    where = f"model {deployment.model_name!r}: litellm_params"
    known = [field.name for field in dataclasses.fields(InProcessOptions)]
    for name, value in deployment.params.items():
        if name not in known:
            raise ConfigError(
                f"{where}.{name} is unknown to the engine in this process (known: {', '.join(known)})"
            )
        if name in _RANGES and value is not None:
            _check_number(f"{where}.{name}", value, *_RANGES[name])
    arguments = deployment.params.get("engine_args") or {}
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise ConfigError(f"{where}.engine_args must map names of vLLM's arguments to values")
    for name in arguments:
        if name.replace("-", "_") in _OURS:
            raise ConfigError(f"{where}.engine_args.{name} cannot be set: {_OURS[name.replace('-', '_')]}")
    fetch = deployment.params.get("fetch_hidden", False)
    if fetch not in (True, False):
        raise ConfigError(f"{where}.fetch_hidden must be true or false, not {fetch!r}")
    given = {**deployment.params, "fetch_hidden": bool(fetch)}
    return InProcessOptions(
        **given | {"engine_args": {name.replace("-", "_"): value for name, value in arguments.items()}}
    )


def _check_number(where: str, value: object, low: float, high: float) -> None:
    kind = "a number" if isinstance(low, float) else "a whole number"
    right = isinstance(value, int | float if isinstance(low, float) else int) and not isinstance(value, bool)
    if not right or not math.isfinite(float(str(value))) or not low <= float(str(value)) <= high:
        raise ConfigError(f"{where} must be {kind} in {low}..{high}, not {value!r}")
