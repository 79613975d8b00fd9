"""What the plug-in counts, of all engines together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sona_stream.errors import HostAway, HostError

from .link import Link

__all__ = ["hook_stats"]


async def hook_stats(link: Link) -> dict[str, float | str]:
    """Name -> sum; ``disabled`` is a text, empty while the hook works. Empty when the plug-in does not tell."""
    try:
        told = await link.json("GET", "stats")
    except (HostAway, HostError):
        return {}
    if not isinstance(told, Mapping):
        return {}
    engines = [one for one in told.get("engines") or () if isinstance(one, Mapping)]
    total: dict[str, float | str] = {}
    for part in (*engines, told.get("endpoint") or {}):
        for name, value in part.items():
            if _is_number(value):
                total[name] = float(total.get(name, 0.0)) + value
    total["disabled"] = next((str(one["disabled"]) for one in engines if one.get("disabled")), "")
    return total


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
