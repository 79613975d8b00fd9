"""The local backend: loads in the background, then streams."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

from sona_stream.config.settings import Deployment, SonaSettings
from sona_stream.errors import InvalidRequest, ModelUnavailable, NotReady, SonaError
from sona_stream.events import Event, Head, Headers, Request
from sona_stream.protocols import EventStream, HiddenStateHost
from sona_stream_adapters.text import completion_id, events_of

from .options import parse_options
from .weights import find_model, pull_model

if TYPE_CHECKING:
    from .engine import Engine  # imports torch

__all__ = ["LocalBackend"]

_log = logging.getLogger(__name__)


class LocalBackend:
    """One deployment. ``async with`` begins pulling and loading in a thread; `probe` tells how far it is."""

    adaptable = True

    def __init__(self, deployment: Deployment, settings: SonaSettings) -> None:
        self.name = deployment.model_name
        self._source = deployment.upstream_model
        self._settings = settings
        self._options = parse_options(deployment.params, model_name=deployment.model_name)
        self._engine: Engine | None = None
        self._failure: SonaError | None = None
        self._status = f"{self.name}: not started"
        self._stopping = threading.Event()
        self._loader: threading.Thread | None = None

    @property
    def host(self) -> HiddenStateHost | None:
        """None until the model is loaded."""
        return None if self._engine is None else self._engine.host

    async def __aenter__(self) -> LocalBackend:
        self._stopping.clear()
        self._failure = None
        self._loader = threading.Thread(target=self._load, name="sona-model-loader", daemon=True)
        self._loader.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stopping.set()
        if self._loader is not None:
            await asyncio.to_thread(self._loader.join)
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.scheduler.stop)
        self._status = f"{self.name}: stopped"

    async def probe(self) -> None:
        """Raises NotReady with the phase while loading, ModelUnavailable when it cannot be had."""
        self._ready()

    async def embeddings(self, body: bytes, headers: Headers = ()) -> tuple[int, Headers, bytes]:
        """A causal language model has no sentence embeddings worth the name."""
        raise InvalidRequest(f"{self.name} generates text; name an embedding model", param="model")

    def __call__(self, request: Request, /) -> EventStream:
        """Raises before `Head` whatever can be known before. Leaving the block frees the rows within one token."""
        return self._stream(request)

    @asynccontextmanager
    async def _stream(self, request: Request) -> AsyncIterator[AsyncIterator[Event]]:
        engine = self._ready()
        engine.adapters.begin(request.adapter)  # before anything is awaited: it must not make room for another one
        try:
            generation = await engine.begin(request)
            head = Head(
                model=self.name, adapter=engine.adapter_now(generation), prompt_ids=tuple(generation.prompt_ids)
            )
            try:
                engine.scheduler.submit(generation)
                async with aclosing(events_of(head, generation.queue, completion_id(request))) as events:
                    yield events
            finally:
                generation.cancelled = True
        finally:
            engine.adapters.end(request.adapter)

    def _ready(self) -> Engine:
        if self._engine is not None:
            if not self._engine.scheduler.alive:
                raise NotReady(f"{self.name}: the model has stopped; restart the server")
            return self._engine
        if self._failure is not None:
            raise self._failure
        raise NotReady(self._status)

    def _load(self) -> None:
        try:
            if find_model(self._source) is None:
                self._say(f"pulling {self._source}")
            folder = pull_model(self._source, progress=self._say, cancelled=self._stopping.is_set)
            if self._stopping.is_set():
                return
            self._say(f"loading {folder.name}")
            # Read once, when torch is first imported. Threads that spin while they wait for each other come to a
            # standstill when anything else wants a core: 15x slower decoding was measured on two busy cores.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            from .engine import Engine

            self._engine = Engine(folder, name=self.name, options=self._options, settings=self._settings)
            self._say("ready")
        except SonaError as error:
            self._fail(error)
        except Exception as error:
            _log.exception("%s: loading failed", self.name)
            self._fail(ModelUnavailable(f"{self.name} cannot be loaded: {error}"))

    def _say(self, phase: str) -> None:
        self._status = f"{self.name}: {phase}"
        _log.info("%s", self._status)

    def _fail(self, error: SonaError) -> None:
        self._failure = error
        if not self._stopping.is_set():
            _log.error("%s: %s", self.name, error)
