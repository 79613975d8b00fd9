"""The one door for adapters: entry points. Built-in adapters come in through it like a third party's."""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from .errors import PluginError

__all__ = ["Group", "available", "load"]

Group = Literal["backends", "embedders", "exporters", "stores", "scorers", "models", "hooks"]


@functools.cache  # what is installed does not change under a running program, and looking reads many files
def _find(group: Group) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"sona_stream.{group}")}


def available(group: Group) -> list[str]:
    """Names in this group, sorted; nothing is imported."""
    return sorted(_find(group))


def load(group: Group, name: str) -> Any:
    """The object behind an entry point. Raises `PluginError` that names what is there and what is missing."""
    points = _find(group)
    if name not in points:
        known = ", ".join(sorted(points)) or "none"
        raise PluginError(f"no {group[:-1]} named {name!r} is installed (installed: {known})")
    try:
        return points[name].load()
    except ImportError as error:
        raise PluginError(
            f"the {group[:-1]} {name!r} needs {error.name or error} which is not installed; "
            f"try: pip install 'sona-stream[{_extra_for(name)}]'"
        ) from error


def _extra_for(name: str) -> str:
    return {"local": "local", "onnx": "memory", "redis": "redis", "vllm": "vllm"}.get(name, "local")
