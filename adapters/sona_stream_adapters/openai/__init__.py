"""Backend for any OpenAI-compatible server: the upstream's bytes pass verbatim, beside them a parser reads."""

from __future__ import annotations

from sona_stream.config.settings import Deployment, SonaSettings

from .backend import OpenAIBackend

__all__ = ["OpenAIBackend", "create_backend"]


def create_backend(deployment: Deployment, settings: SonaSettings) -> OpenAIBackend:
    """The entry point ``sona_stream.backends: openai``. Raises `ConfigError` that names entry and field."""
    return OpenAIBackend(deployment, settings)
