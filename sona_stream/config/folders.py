"""Where learned state and downloaded models live: the platform's own folders, or what the environment says."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_dir", "state_dir"]


def state_dir(configured: str | None = None) -> Path:
    """Folder of the learned state: `sona.state_dir`, else ``SONA_STREAM_STATE``, else the platform's own."""
    chosen = configured or os.environ.get("SONA_STREAM_STATE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_state_path

    return user_state_path("sona_stream", appauthor=False)


def cache_dir() -> Path:
    """Folder of downloaded and converted models: ``SONA_STREAM_CACHE``, else the platform's cache folder."""
    chosen = os.environ.get("SONA_STREAM_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("sona_stream", appauthor=False)
