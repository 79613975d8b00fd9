"""A vLLM server that runs the plug-in: its answers, and its hidden states by HTTP.

Without a ``control_key`` in the entry its answers pass like any OpenAI-compatible server's.
"""

from __future__ import annotations

import logging

from sona_stream.config.settings import Deployment, SonaSettings
from sona_stream.protocols import Backend
from sona_stream_adapters.openai import OpenAIBackend

from .backend import VllmBackend

__all__ = ["VllmBackend", "create_backend"]

_log = logging.getLogger(__name__)


def create_backend(deployment: Deployment, settings: SonaSettings) -> Backend:
    """The entry point ``sona_stream.backends: vllm``. Raises `ConfigError` that names entry and field."""
    if deployment.params.get("control_key"):
        return VllmBackend(deployment, settings)
    _log.warning(
        "model %r: without control_key (the server's SONA_VLLM_KEY) its hidden states are out of reach",
        deployment.model_name,
    )
    return OpenAIBackend(deployment, settings)
