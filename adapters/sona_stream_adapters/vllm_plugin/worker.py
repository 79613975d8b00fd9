"""The methods that vLLM's `collective_rpc` reaches by name, on every worker: arguments and answers are plain values
and bytes, every answer is ``{"ok": bool, "error": str, ...}``, and none of them raises.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sona_stream.errors import SonaError

from .calls import Calls
from .refusal import Refusal
from .settings import SettingsError, read_settings

__all__ = ["METHODS", "add_worker_methods"]

logger = logging.getLogger("sona_stream.vllm_plugin")

METHODS = (
    "install",
    "put",
    "drop",
    "adapters",
    "put_episode",
    "drop_episode",
    "capture",
    "keep",
    "release",
    "gradient",
    "predicted_kl",
    "evaluate",
    "curvature",
    "hidden_space",
    "advance",
    "stats",
)
_HELD_AS = "_sona_calls"


def add_worker_methods(worker_class: Any = None) -> None:
    """``sona_<name>`` for each of METHODS, on vLLM's `WorkerBase` unless told otherwise; idempotent."""
    if worker_class is None:
        from vllm.v1.worker.worker_base import WorkerBase

        worker_class = WorkerBase
    for name in METHODS:
        if not hasattr(worker_class, f"sona_{name}"):
            setattr(worker_class, f"sona_{name}", _method(name))


def _method(name: str) -> Callable[..., dict[str, Any]]:
    def call(worker: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        calls: Calls | None = worker.__dict__.get(_HELD_AS)
        try:
            if calls is None:
                calls = worker.__dict__[_HELD_AS] = _installed(worker)
            return {"ok": True, "error": "", **getattr(calls, name)(*args, **kwargs)}
        except Refusal as refusal:
            answer: dict[str, Any] = {"ok": False, "error": str(refusal)}
            if refusal.gone is not None:
                answer["gone"] = refusal.gone
        except (SonaError, SettingsError) as error:
            answer = {"ok": False, "error": str(error)}
        except Exception as error:
            logger.exception("sona: %s failed", name)
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        if calls is not None:
            calls.count_refused()
        return answer

    call.__name__ = call.__qualname__ = f"sona_{name}"
    call.__doc__ = getattr(Calls, name).__doc__
    return call


def _installed(worker: Any) -> Calls:
    from .ranks import find_ranks

    return Calls(worker, read_settings(), find_ranks())
