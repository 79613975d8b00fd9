"""The assembled program: owns the lifetimes of the rooms and answers what the server asks of them."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from .. import plugins
from ..config.folders import state_dir
from ..config.settings import Settings
from ..engine import SonaEngine
from ..engine.learner import Learner
from ..errors import NotFound, NotReady, SonaError
from ..events import AdapterRef, Headers
from ..protocols import Backend, Embedder, FeedbackSink, Handler, Store
from .assembly import build_backends, build_patterns, build_pipeline, build_router
from .feedback import FeedbackFanOut
from .trajectories import TrajectoryFanOut
from .upkeep import PATTERNS_BLOB, keep_patterns

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["Application"]

_log = logging.getLogger(__name__)

View = Mapping[str, Any]


class Application:
    """Satisfies `server.services.Services`. Build it, then `startup`; `shutdown` loses nothing learned."""

    def __init__(self, settings: Settings, *, directory: Path | None = None) -> None:
        from prometheus_client import CollectorRegistry

        sona = settings.sona
        self.settings = settings
        self.directory = directory or state_dir(sona.state_dir)
        self.registry: CollectorRegistry = CollectorRegistry(auto_describe=True)
        self.embedder: Embedder = plugins.load("embedders", sona.routing.embedder)(
            dict(sona.routing.embedder_options), settings
        )
        self.patterns: SonaEngine = build_patterns(settings, self.embedder)
        self.store: Store = plugins.load("stores", sona.store)(sona, directory=self.directory)
        self.backends: dict[str, list[Backend]] = build_backends(settings)
        self.learner = Learner(self._hosts, self.store, settings)
        self.router = build_router(settings, self.embedder, self.patterns)
        self.trajectories = TrajectoryFanOut(self.store, self.patterns)
        self.feedback: FeedbackSink = FeedbackFanOut(self.store, self.trajectories, self.learner)
        self.pipeline: Handler = build_pipeline(self)
        self._stack = AsyncExitStack()
        self._started_at = time.time()
