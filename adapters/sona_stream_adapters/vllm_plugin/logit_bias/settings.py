"""What the environment says about tenants' logit biases. A bad value ends the start with the variable's name."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path

from ..settings import SettingsError
from .file import Limits

__all__ = ["BiasSettings", "read_bias_settings"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BiasSettings:
    """The variables, with their defaults."""

    folder: Path
    """SONA_VLLM_BIAS_DIR: the folder that is watched; it may come later"""
    poll_s: float = 0.5
    """SONA_VLLM_BIAS_POLL_MS: how often it is looked at"""
    tenants: int = 1024
    """SONA_VLLM_BIAS_TENANTS: files that are served; more are refused"""
    limits: Limits = dataclasses.field(default_factory=Limits)
    """SONA_VLLM_BIAS_TOKENS, entries of one file, and SONA_VLLM_BIAS_MAX, the largest of them"""


def read_bias_settings(environ: Mapping[str, str] = os.environ) -> BiasSettings:
    """Raises SettingsError naming the variable and its limits."""
    folder = environ.get("SONA_VLLM_BIAS_DIR", "")
    if not folder:
        raise SettingsError("SONA_VLLM_BIAS_DIR is not set: name the folder that holds the tenants' bias files")
    limits = Limits()
    return BiasSettings(
        folder=Path(folder).expanduser(),
        poll_s=_number(environ, "SONA_VLLM_BIAS_POLL_MS", 500, 10, 3_600_000) / 1000,
        tenants=int(_number(environ, "SONA_VLLM_BIAS_TENANTS", 1024, 1, 100_000)),
        limits=Limits(
            tokens=int(_number(environ, "SONA_VLLM_BIAS_TOKENS", limits.tokens, 1, 1 << 20)),
            bias=_number(environ, "SONA_VLLM_BIAS_MAX", limits.bias, 1e-6, 1e4),
        ),
    )


def _number(environ: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    text = environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        raise SettingsError(f"{name}={text!r}: expected a number") from None
    if not (math.isfinite(value) and low <= value <= high):
        raise SettingsError(f"{name}={text!r}: expected {low:g} to {high:g}")
    return value
