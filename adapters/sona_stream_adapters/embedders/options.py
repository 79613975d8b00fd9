"""Checks of `sona.routing.embedder_options`, in one voice for all embedders."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sona_stream.errors import ConfigError

__all__ = ["check_options", "positive", "text"]

_WHERE = "sona.routing.embedder_options"


def check_options(embedder: str, options: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises ConfigError naming the first unknown option and those there are."""
    for name in options:
        if name not in known:
            listing = ", ".join(sorted(known)) or "none"
            raise ConfigError(f"{_WHERE}.{name} is not an option of the embedder {embedder!r} (options: {listing})")


def text(options: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A non-empty string; required when there is no default."""
    value = options.get(name, default)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{_WHERE}.{name} must be a non-empty string, got {value!r}")
    return value


def positive(options: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A number above 0; required when there is no default."""
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"{_WHERE}.{name} must be a number above 0, got {value!r}")
    return float(value)
