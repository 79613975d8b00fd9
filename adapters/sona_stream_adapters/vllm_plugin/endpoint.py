"""The `vllm.endpoint_plugins` entry point: routes under ``/v1/sona/`` and the guard around all others.

Inert unless ``SONA_VLLM=1``; then ``SONA_VLLM_KEY`` must be set, for whoever has it may bind and write adapters.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping
from typing import Any

from .control import Control
from .encoding import Encoder, sampling_params
from .engines import Engines
from .guard import Guard
from .messages import PREFIX
from .settings import SettingsError, is_enabled, read_settings

__all__ = ["SonaEndpoint", "plugin"]

_log = logging.getLogger(__name__)

_LEAST_KEY = 16


class SonaEndpoint:
    """What vLLM's API server is given. One a server process."""

    name = "sona_http"
    required_tasks = ("generate",)
    sampling: Callable[..., Any] = staticmethod(sampling_params)
    """Makes the parameters of an encoded answer."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        enabled = is_enabled() if environ is None else is_enabled(environ)
        self._control = _control(environ) if enabled else None
        self._models: Collection[str] = ()

    def attach_router(self, app: Any) -> None:
        """Adds the routes, and the guard as the innermost middleware: after authentication, and after whatever else
        may write into a body.
        """
        control = self._control
        if control is None:
            return
        app.add_middleware(
            Guard,
            key=control.key,
            instance=lambda: str(control.info.get("instance", "")),
            watch=control.watch,
            models=lambda: self._models,
            count=control.count,
        )
        app.mount(PREFIX, control)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Installs the hook before the server takes requests. What keeps it from running is logged and told at
        ``info``; the server serves without it all the same.
        """
        control = self._control
        if control is None:
            return
        self._models = _served_names(args)
        if engine_client is None:
            _log.warning("sona: this server has no engine; its routes answer 503")
            return
        engines = Engines(engine_client)
        info = await engines.install()
        for problem in info["problems"]:
            _log.warning("sona: %s", problem)
        config = getattr(engine_client, "model_config", None)
        context = getattr(config, "max_model_len", None)
        encoder = Encoder(engine_client, engines, max_tokens=context, params=self.sampling)
        if info.get("ok", True):
            await encoder.warm_up()
        control.attach(engines, encoder, {**info, "served": list(self._models)})
        _log.info("sona: the hook runs on %s engine(s), model %s", info["engines"], info.get("model"))


def plugin() -> SonaEndpoint:
    """The factory that vLLM calls. Raises SettingsError when the environment cannot be used."""
    return SonaEndpoint()


def _control(environ: Mapping[str, str] | None) -> Control:
    settings = read_settings() if environ is None else read_settings(environ)
    key = settings.key or ""
    if len(key) < _LEAST_KEY or not key.isascii() or not key.isprintable():
        raise SettingsError(
            f"SONA_VLLM_KEY: expected at least {_LEAST_KEY} printable ASCII characters; whoever knows it may "
            "bind and write adapters"
        )
    return Control(
        key.encode(),
        adapter_bytes=settings.adapter_bytes,
        capture_bytes=settings.capture_bytes,
    )


def _served_names(args: Any) -> tuple[str, ...]:
    names = getattr(args, "served_model_name", None) or [getattr(args, "model", "")]
    return tuple(names) if isinstance(names, list | tuple) else (str(names),)
