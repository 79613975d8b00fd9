"""The routing decision alone: what `sona-stream route` shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config.folders import state_dir
from ..config.settings import Settings
from ..engine import SonaEngine
from .assembly import build_embedder, build_router, pattern_factory
from .patterns import peek

__all__ = ["explain"]


async def explain(
    settings: Settings, query: str, directory: Path | None = None, tenant: str = "default"
) -> dict[str, Any]:
    """Model, pattern, type and the rule that decided, from the tenant's learned patterns on disk; nothing is
    changed.
    """
    embedder = build_embedder(settings)
    folder = directory or state_dir(settings.sona.state_dir)

    empty = pattern_factory(settings, embedder)

    async def of(tenant: str) -> SonaEngine:
        return await peek(folder, embedder, tenant, empty)

    return await build_router(settings, embedder, of).explain(query, tenant=tenant)
