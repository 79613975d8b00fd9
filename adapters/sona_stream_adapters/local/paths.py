"""Where downloaded models live: the platform's cache folder, or ``SONA_STREAM_CACHE``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["cache_dir", "models_dir"]


def cache_dir() -> Path:
    """The cache folder (not created). XDG on Unix, ``~/Library/Caches`` on macOS, ``LOCALAPPDATA`` on Windows."""
    chosen = os.environ.get("SONA_STREAM_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA")
        return (Path(root) if root else Path.home() / "AppData" / "Local") / "sona_stream" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "sona_stream"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative path is to be ignored.
    return (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "sona_stream"


def models_dir() -> Path:
    """Folder that holds one folder a pulled model."""
    return cache_dir() / "models"
