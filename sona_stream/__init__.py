"""sona_stream: an asyncio streaming middleware for LLM servers that routes, scores, adapts and learns.

Importing this package is cheap: names are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config.engine import SonaConfig
    from .engine import SonaEngine

__all__ = ["SonaConfig", "SonaEngine", "__version__"]
__version__ = "0.1.0"

_WHERE = {"SonaConfig": "sona_stream.config.engine", "SonaEngine": "sona_stream.engine"}


def __getattr__(name: str) -> Any:
    try:
        return getattr(import_module(_WHERE[name]), name)
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted(__all__)
