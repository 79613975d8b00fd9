"""What is learned, durable: SQLite for rows, safetensors files for tensors, in one state folder.

state.sqlite3   trajectories, feedback with outcomes, the index of adapters, captures and episodes, blobs
adapters/       one safetensors file a version: weights and the optimiser's moments
captures/       judged answers kept for replay (never at `sona.storage: none`)
episodes/       segments of remembered answers: questions' vectors and token states, appended and erased in place
backups/        copies that migrations made before they ran
state.lock      held by the one process that may write
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import maintenance
from .forgetting import forget
from .report import Report
from .sqlite import SqliteStore

if TYPE_CHECKING:
    from ..config.settings import SonaSettings

__all__ = ["Report", "SqliteStore", "create_store", "forget", "maintenance"]


def create_store(settings: SonaSettings, *, directory: Path) -> SqliteStore:
    """The store of the entry point `sqlite`; nothing is touched before ``async with``."""
    return SqliteStore(settings, directory=directory)
