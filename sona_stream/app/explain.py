"""The routing decision alone: what `sona-stream route` shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config.folders import state_dir
from ..config.settings import Settings
from ..store.peek import read_blob
from .assembly import build_embedder, build_patterns, build_router
from .patterns import PATTERNS_BLOB, restored

__all__ = ["explain"]


async def explain(settings: Settings, query: str, directory: Path | None = None) -> dict[str, Any]:
    """Model, pattern, type and the rule that decided, from the learned patterns on disk; nothing is changed."""
    embedder = build_embedder(settings)
    data = read_blob(directory or state_dir(settings.sona.state_dir), PATTERNS_BLOB)
    patterns = await restored(data, build_patterns(settings, embedder))
    return await build_router(settings, embedder, patterns).explain(query)
