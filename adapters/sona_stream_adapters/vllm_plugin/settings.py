"""What the environment says. Read once in each process; a bad value ends the start with the variable's name."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping

__all__ = ["PluginSettings", "SettingsError", "is_enabled", "read_settings"]

MIB = 1 << 20


class SettingsError(ValueError):
    """A variable has a value that cannot be used."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PluginSettings:
    """The variables, with their defaults."""

    key: str | None = dataclasses.field(default=None, repr=False)
    """SONA_VLLM_KEY: opens the control routes and may bind requests to adapters"""
    adapter_bytes: int = 64 * MIB
    """SONA_VLLM_ADAPTER_MB: all adapters together, on the device"""
    capture_bytes: int = 256 * MIB
    """SONA_VLLM_CAPTURE_MB: finished captures that are kept, on the device"""
    ring_tokens: int = 8192
    """SONA_VLLM_RING_TOKENS: sampled tokens whose hidden states wait to be fetched"""
    max_rank: int = 64
    """SONA_VLLM_MAX_RANK: of one adapter, micro and base together"""
    max_delta: float = 1.0
    """SONA_VLLM_MAX_DELTA: |h' - h| is cut to this times |h|"""
    episode_bytes: int = 64 * MIB
    """SONA_VLLM_EPISODE_MB: all episodes together, on the device; what answers under way hold stands beside it"""
    gradient_tokens: int = 256
    """SONA_VLLM_GRADIENT_TOKENS: tokens that one call may hold up decoding for"""
    episode_share: float = 0.998
    """SONA_VLLM_EPISODE_SHARE: lambda_0, the most that memory may say"""
    episode_threshold: float = 0.3
    """SONA_VLLM_EPISODE_THRESHOLD: tau, the cosine (times the gate) at which memory says half of that; a twentieth
    less for each of the last four tokens that were said as remembered"""


def is_enabled(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether SONA_VLLM asks for the plug-in. Raises SettingsError on anything but 0 or 1."""
    value = environ.get("SONA_VLLM", "0") or "0"
    if value not in ("0", "1"):
        raise SettingsError(f"SONA_VLLM={value!r}: expected 0 or 1")
    return value == "1"


def read_settings(environ: Mapping[str, str] = os.environ) -> PluginSettings:
    """Raises SettingsError naming the variable and its limits."""
    default = PluginSettings()
    return PluginSettings(
        key=environ.get("SONA_VLLM_KEY") or None,
        adapter_bytes=_megabytes(environ, "SONA_VLLM_ADAPTER_MB", default.adapter_bytes),
        capture_bytes=_megabytes(environ, "SONA_VLLM_CAPTURE_MB", default.capture_bytes),
        ring_tokens=_integer(environ, "SONA_VLLM_RING_TOKENS", default.ring_tokens, 16, 1 << 24),
        max_rank=_integer(environ, "SONA_VLLM_MAX_RANK", default.max_rank, 1, 512),
        max_delta=_number(environ, "SONA_VLLM_MAX_DELTA", default.max_delta, 1e-6, 1e3),
        episode_bytes=_megabytes(environ, "SONA_VLLM_EPISODE_MB", default.episode_bytes),
        gradient_tokens=_integer(environ, "SONA_VLLM_GRADIENT_TOKENS", default.gradient_tokens, 1, 1 << 16),
        episode_share=_number(environ, "SONA_VLLM_EPISODE_SHARE", default.episode_share, 0.0, 0.999),
        episode_threshold=_number(environ, "SONA_VLLM_EPISODE_THRESHOLD", default.episode_threshold, -1.0, 1.0),
    )


def _megabytes(environ: Mapping[str, str], name: str, default: int) -> int:
    return int(_number(environ, name, default / MIB, 0.0, 1 << 20) * MIB)


def _integer(environ: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = environ.get(name, "")
    try:
        value = int(text) if text else default
    except ValueError:
        raise SettingsError(f"{name}={text!r}: expected a whole number") from None
    if not low <= value <= high:
        raise SettingsError(f"{name}={text!r}: expected {low} to {high}")
    return value


def _number(environ: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    text = environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        raise SettingsError(f"{name}={text!r}: expected a number") from None
    if not (math.isfinite(value) and low <= value <= high):
        raise SettingsError(f"{name}={text!r}: expected {low:g} to {high:g}")
    return value
