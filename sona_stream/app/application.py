"""The assembled program: owns the lifetimes of the rooms and answers what the server asks of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from .. import plugins
from ..config.folders import state_dir
from ..config.settings import WILDCARD, Settings
from ..engine.learner import Learner
from ..errors import NotReady, SonaError
from ..events import AdapterRef, Feedback, FeedbackOutcome, Headers, Principal, Request, Trajectory
from ..protocols import Backend, Closable, Embedder, Handler, Store
from ..stages import Meter
from . import embeddings as own_embeddings
from .amendments import Amendments
from .assembly import (
    build_backends,
    build_embedder,
    build_memory,
    build_pipeline,
    build_router,
    build_scorers,
    pattern_factory,
)
from .auto import AutoFeedback
from .bringing import Bringing
from .budget_metrics import BudgetCollector
from .embedding_calls import EmbeddingCalls
from .engine_settings import engine_config
from .gate_metrics import GateCollector
from .hook_metrics import HookCollector
from .hosts import Hosts
from .memory import Memories
from .memory_metrics import MemoryCollector
from .memory_services import MemoryServices
from .notices import notices
from .patterns import PatternBanks
from .said import Said
from .taking_back import TakingBack
from .trajectories import TrajectoryFanOut
from .upstream_models import UpstreamModels
from .views import pattern_view
from .watch import Watch

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["Application"]

_log = logging.getLogger(__name__)

View = Mapping[str, Any]


class Application(MemoryServices, TakingBack, Bringing):
    """Satisfies `server.services.Services`: build it, `startup`, serve, `shutdown`.

    A model in this process loads while the server is already up; its host joins the learner once it answers, and is
    given every learned version before the first routed request is let through.
    """

    pipeline: Handler
    pattern_banks: PatternBanks

    def __init__(self, settings: Settings, *, directory: Path | None = None) -> None:
        from prometheus_client import CollectorRegistry

        sona = settings.sona
        self.settings = settings
        self.registry: CollectorRegistry = CollectorRegistry(auto_describe=True)
        self.directory = directory or state_dir(sona.state_dir)
        self.store: Store = plugins.load("stores", sona.store)(sona, directory=self.directory)
        self.embedder: Embedder = build_embedder(settings)
        self.backends: dict[str, list[Backend]] = build_backends(settings)
        self._learner: Learner | SonaError = NotReady("the learner has not begun yet")
        self._adaptable = [name for name, group in self.backends.items() if any(b.adaptable for b in group)]
        self._upstream_models = UpstreamModels(self.backends.get(WILDCARD, ()))
        self._embedding_calls = EmbeddingCalls(self.backends)
        self._meter = Meter(self.registry)
        self._watch = Watch(self.backends, interval=sona.health.interval)
        self._hosts = Hosts(self._adaptable, self._watch)
        self._budgets = BudgetCollector(self.backends, self._budget_keepers)
        self._memory: Memories | None = None
        self.live = (
            HookCollector(self._watch),
            self._budgets,
            GateCollector(self._gates),
            MemoryCollector(lambda: {} if self._memory is None else self._memory.stats()),
        )
        self._said = Said(self.store, names=sona.storage != "none")
        self._stack = AsyncExitStack()
        self._started_at = time.time()

    # ---- lifetime

    async def startup(self) -> None:
        """Opens the store, starts the backends, and begins to wait for their models."""
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        for line in notices(self.settings, self._adaptable):
            _log.warning("%s", line)

    async def _start(self, stack: AsyncExitStack) -> None:
        settings = self.settings
        await stack.enter_async_context(self.store)
        if isinstance(self.embedder, Closable):
            stack.push_async_callback(self.embedder.aclose)
        keeps = settings.sona.storage != "none"  # a pattern's centre is made of embeddings
        self.pattern_banks = banks = PatternBanks(
            pattern_factory(settings, self.embedder), self.embedder, self.store if keeps else None
        )
        await banks.load(dict.fromkeys((Principal().tenant, *(key.tenant for key in settings.sona.keys))))
        stack.push_async_callback(banks.save)
        for group in self.backends.values():
            for backend in group:
                await stack.enter_async_context(backend)
        self._memory = build_memory(settings, self.store, self._hosts, self.backends)
        if self._memory is not None:
            await stack.enter_async_context(self._memory)
        learning = settings.sona.learning
        scores = AutoFeedback(self.store, self._learn_from)
        self.trajectories = TrajectoryFanOut(
            self.store,
            banks,
            learn=learning != "off",
            teach=scores.offer if learning == "auto" and self._adaptable else None,
            watch=self._observe,
        )
        self.pipeline = build_pipeline(
            settings,
            self.backends,
            router=build_router(settings, self.embedder, banks.of, self._upstream_models.to_route_to),
            embedder=self.embedder,
            sink=self.trajectories,
            resolver=self,
            standing=self._hosts.standing,
            episodes=self._memory,
            scorers=build_scorers(settings),
            meter=self._meter,
        )
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        tasks.start_soon(self._watch.run)
        tasks.start_soon(self._learn_on)
        tasks.start_soon(scores.run)
        if keeps:
            tasks.start_soon(Amendments(self._watch, self.store).run)
        tasks.start_soon(banks.tend)

    async def _learn_on(self) -> None:
        """The learner's whole life. Hosts join it as they come."""
        try:
            async with self._new_learner() as learner:
                self._learner = learner
                await self._hosts.join(learner)
        except SonaError as error:
            self._learner = error
        except Exception as error:
            _log.exception("the learner failed")
            self._learner = SonaError(f"the learner failed: {error}; the log says more")

    def _new_learner(self) -> Learner:
        sona = self.settings.sona
        rates = engine_config(self.settings, 1)  # of which the learner reads nothing that depends on a width
        return Learner(
            {},
            self.store,
            rates,
            sona.learner,
            sona.learning,
            expected=self._adaptable,
            whose=self.trajectories.whose,
            remember=None if self._memory is None else self._memory.take,
            embedder=self.embedder,
            keep_days=sona.storage_options.features_ttl_days,
        )

    async def shutdown(self) -> None:
        """Stops the learner and the backends, keeps the patterns, closes the store."""
        await self._stack.aclose()

    # ---- what the stages ask

    def resolve(self, request: Request) -> AdapterRef | None:
        """`AdapterResolver`. Before the learner has joined, a model that it would adapt is not ready yet: its
        first answer after a restart must not come from the bare model.
        """
        if request.model not in self._hosts:
            return None
        learner = self._learning()
        return learner.resolve(request) if self._hosts.check(request.model) else None

    def bare_reason(self, request: Request) -> str:
        """`AdapterResolver`. Empty for a model whose requests are never adapted."""
        known = request.model in self._hosts and isinstance(self._learner, Learner)
        return self._learning().bare_reason(request) if known else ""

    # ---- what the server asks

    @property
    def feedback(self) -> Application:
        """`FeedbackSink`."""
        return self

    async def learn(self, feedback: Feedback, *, wait: bool = False) -> FeedbackOutcome:
        """Committed feedback moves routing statistics at once, and weights where there is a host.

        Raises CaptureGone when the answer is gone: to those who wait, and at storage "none", where that is known
        at once, to everybody.
        """
        try:
            await self.trajectories.judge(feedback)
        except Exception:  # a statistic less; the judgement itself is committed and is learned all the same
            _log.exception("feedback %s could not move routing statistics", feedback.id)
        self._said.hear(feedback)
        await self._remember(feedback)
        if not wait and self.settings.sona.storage == "none" and isinstance(self._learner, Learner):
            await self._learner.require_answer(feedback)
        return await self._learn_from(feedback, wait=wait)

    async def _learn_from(self, feedback: Feedback, *, wait: bool = False) -> FeedbackOutcome:
        if isinstance(self._learner, SonaError):
            reason = f"the feedback is kept and will be learned later: {self._learner}"
            return FeedbackOutcome(feedback_id=feedback.id, status="queued", reason=reason)
        return await self._learner.learn(feedback, wait=wait)

    async def readiness(self) -> None:
        """See `Services`."""
        self._watch.check()
        self._learning()
        self._hosts.check_all()

    async def embeddings(self, model: str, body: bytes, headers: Headers = ()) -> tuple[int, Headers, bytes]:
        """See `Services`."""
        if model not in self.backends and model in (self.embedder.name, own_embeddings.model_name(self.embedder)):
            return await own_embeddings.embed(self.embedder, body)
        return await self._embedding_calls.ask(model, body, headers)

    async def models(self) -> Sequence[str]:
        """See `Services`."""
        configured = (name for name in self.backends if name != WILDCARD)
        listed = await self._upstream_models.names()
        return tuple(dict.fromkeys((*configured, *listed, own_embeddings.model_name(self.embedder))))

    async def pin(self, adapter: AdapterRef) -> None:
        """See `Services`."""
        await self._learning().pin(adapter)

    async def stats(self) -> View:
        """See `Services`."""
        learner = self._learner
        return {
            "uptime_s": round(time.time() - self._started_at, 1),
            "engine": self.pattern_banks.stats(),
            "learner": {"problem": str(learner)} if isinstance(learner, SonaError) else learner.stats(),
            "memory": {} if self._memory is None else self._memory.stats(),
            "budgets": self._budgets.view(),
            "hosts": self._hosts.problems(),
            "store": await self.store.stats(),
            "backends": self._watch.view(),
        }

    async def patterns(self) -> Sequence[View]:
        """See `Services`."""
        return [pattern_view(tenant, pattern) for tenant, pattern in self.pattern_banks.patterns()]

    async def adapters(self, tenant: str | None = None) -> Sequence[View]:
        """See `Services`."""
        return await self._learning().adapters(tenant=tenant)

    async def rollback(self, key: str, version: int) -> View:
        """See `Services`."""
        await self._learning().rollback(key, version)
        return {"key": key, "version": version}

    async def freeze(self) -> View:
        """See `Services`."""
        await self._learning().freeze()
        return {"frozen": True}

    async def thaw(self) -> View:
        """See `Services`."""
        await self._learning().thaw()
        return {"frozen": False}

    async def adapter(self, key: str, version: int) -> View:
        """See `Services`."""
        return await self._learning().adapter(key, version)

    async def difference(self, key: str, one: int, other: int) -> View:
        """See `Services`."""
        return await self._learning().difference(key, one, other)

    def _observe(self, trajectory: Trajectory) -> None:
        if isinstance(self._learner, Learner):
            self._learner.observe(trajectory)

    def _gates(self) -> Mapping[str, Mapping[Any, int]]:
        return self._learner.gates() if isinstance(self._learner, Learner) else {}

    def _learning(self) -> Learner:
        if isinstance(self._learner, SonaError):
            raise self._learner.with_traceback(None)
        return self._learner
