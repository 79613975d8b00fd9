"""Runs inside vLLM's processes: adapts final hidden states per request, captures them, answers for gradients.

Inert unless ``SONA_VLLM=1``. Nothing here imports vllm before `register` is called by vLLM itself.
"""

from __future__ import annotations

__all__ = ["register"]


def register() -> None:
    """The `vllm.general_plugins` entry point. vLLM calls it in every process, possibly more than once."""
    from .settings import is_enabled

    if is_enabled():
        from .worker import add_worker_methods

        add_worker_methods()
