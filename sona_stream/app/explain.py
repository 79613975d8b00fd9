"""The routing decision alone: what `sona-stream route` shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import plugins
from ..config.folders import state_dir
from ..config.settings import Settings
from .assembly import build_embedder, build_patterns, build_router
from .upkeep import load_patterns

__all__ = ["explain"]


async def explain(settings: Settings, query: str, directory: Path | None = None) -> dict[str, Any]:
    """Model, pattern, type and the rule that decided, from the learned patterns on disk; nothing is changed."""
    embedder = build_embedder(settings)
    patterns = build_patterns(settings, embedder)
    folder = directory or state_dir(settings.sona.state_dir)
    if folder.exists():
        store = plugins.load("stores", settings.sona.store)(settings.sona, directory=folder, read_only=True)
        async with store:
            patterns = await load_patterns(store, patterns)
    decision: dict[str, Any] = await build_router(settings, embedder, patterns).explain(query)
    return decision
