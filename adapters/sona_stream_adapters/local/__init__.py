"""A language model in the same process: streams, hosts adapters, computes exact gradients."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from sona_stream.errors import PluginError

from .weights import find_model, pull_model

if TYPE_CHECKING:
    from sona_stream.config.settings import Deployment, SonaSettings
    from sona_stream.protocols import Backend

__all__ = ["create_backend", "find_model", "pull_model"]


def create_backend(deployment: Deployment, settings: SonaSettings) -> Backend:
    """A backend for ``local/<smollm2-135m-instruct | folder | hub id>``; `upstream_model` holds that part."""
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise PluginError(f"the local model needs {' and '.join(missing)}; try: pip install 'sona-stream[local]'")
    from .backend import LocalBackend

    return LocalBackend(deployment, settings)
