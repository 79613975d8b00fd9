"""Runs in the engine's processes: they end with the process that started them, whatever ended it."""

from __future__ import annotations

import os
import signal
import threading
import time

__all__ = ["PARENT", "register"]

PARENT = "SONA_VLLM_PARENT"
"""Environment variable: the process that the engine belongs to. Not there: it belongs to itself."""
_EVERY_S = 1.0
_GRACE_S = 10.0

_watching = False


def register() -> None:
    """The `vllm.general_plugins` entry point: vLLM calls it in every process, possibly more than once."""
    global _watching  # noqa: PLW0603 - one watch a process
    if _watching or os.environ.get(PARENT) != str(os.getppid()):
        return
    _watching = True
    threading.Thread(target=_watch, args=(os.getppid(),), name="sona-parent-watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
