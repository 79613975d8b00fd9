"""The learner: feedback in, adapter versions out. It holds moments, baselines, gates and versions; never lm_head.

``micro_lora_lr`` sets the pace three times: a replay's step of B goes 100 * micro_lora_lr of the way to where its
answers point, an entry of A h moves by 2 * micro_lora_lr, and one judgement may move the policy by at most
``step_kl * (micro_lora_lr / 1e-3)^2`` nats per token.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from types import TracebackType
from typing import Any

import anyio
from anyio.abc import TaskGroup

from ...budgets import Budget
from ...config.settings import LearningSettings
from ...errors import CaptureGone, HostAway, NotFound, SonaError
from ...events import AdapterRef, Feedback, FeedbackOutcome, Request, Trajectory, pupil
from ...protocols import Embedder, HiddenStateHost, Store
from .background import BackgroundLoop
from .familiar import UNFAMILIAR
from .guard import Guard
from .inspection import Inspection
from .instant import InstantLoop
from .intake import Intake, queued
from .keys import AdapterKey, chain, is_pattern
from .rates import Mode, Rates
from .state import State
from .watches import in_share

__all__ = ["Learner"]

_log = logging.getLogger(__name__)


class Learner:
    """`FeedbackSink` and `AdapterResolver` over the hosts of this program.

    Enter it after the hosts are ready and before requests come: entering puts every current version on its host.
    It belongs to one event loop. `learn` and `resolve` never wait for numerical work unless asked to.
    """

    def __init__(
        self,
        hosts: Mapping[str, HiddenStateHost],
        store: Store,
        rates: Rates,
        settings: LearningSettings | None = None,
        mode: Mode = "feedback",
        *,
        expected: Collection[str] = (),
        whose: Callable[[Trajectory], str] | None = None,
        remember: Callable[[Feedback], Awaitable[str]] | None = None,
        embedder: Embedder | None = None,
        keep_days: float = math.inf,
    ) -> None:
        """`hosts` by ``model_name``; `rates` is a `SonaConfig` or anything with its three learning fields.
        `expected`: models whose hosts `attach` will bring; feedback on their answers waits. `whose`: the `pupil` of
        an answer, by default that of the tenant and end user it was recorded for. `remember` makes a correction an
        episode of the memory, unless it is one, and names it; such a correction takes no step and enters replay. It
        is told of ratings, too, and names nothing for them. `embedder`: the requests'. `keep_days`: after which an
        answer is not learned from again, as the store forgets it (`StorageSettings.features_ttl_days`).
        """
        self._state = State(
            hosts, store, rates, settings or LearningSettings(), mode, expected, embedder, keep_days
        )
        self._instant = InstantLoop(self._state, whose or _whose, remember)
        self._background = BackgroundLoop(self._state)
        self._intake = Intake(self._state, self._instant, self._background)
        self._inbox = self._intake.inbox
        self._inspection = Inspection(self._state)
        self._guard = Guard(self._state, self._background.forget)
        self._whose = whose or _whose
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Learner:
        await self._state.restore()
        for ledger in self._state.ledgers.values():
            self._background.resume(ledger)
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._inbox.look_behind()
        self._tasks.start_soon(self._intake.run)
        self._tasks.start_soon(self._background.run)
        self._tasks.start_soon(self._guard.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops at once: what is not finished is in the store and is learned after the next start."""
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()
            await self._tasks.__aexit__(None, None, None)
            self._tasks = None
        self._inbox.close()
        await self._state.watches.save_all()

    async def attach(self, model: str, host: HiddenStateHost) -> None:
        """A host is there that was not, or another model behind the same name: every version made for it is served
        on it when this returns, no other one is, and feedback that waited for it is learned.
        """
        await self._state.attach(model, host)
        for root, ledger in self._state.ledgers.items():
            if root.model == model:
                self._background.resume(ledger)
        self.retry(model)

    def retry(self, model: str) -> None:
        """The model's host answers again: try now what waited for it."""
        self._inbox.retry(model)
        self._background.retry(model)

    def resolve(self, request: Request) -> AdapterRef | None:
        """The finest served level of the request's key chain that was taught enough and does not defer to a coarser
        one; None: the bare model, see `bare_reason`.
        """
        if request.route is None or not request.adapt:
            return None
        state, keys = self._state, _keys(request)
        if not state.familiar.expects(keys[0], request.embedding):
            return None
        for key in reversed(keys):
            found = state.versions.chosen(key, request) if state.used(key) else None
            if found is not None:
                share = state.watches.validity(key).share if request.constrained else 1.0
                return found if share == 1.0 or in_share(request, f"form {key}", share) else None
        return None

    def bare_reason(self, request: Request) -> str:
        """Why `resolve` gave the bare model; empty: there is no adapter."""
        state, keys = self._state, _keys(request)
        if not state.familiar.expects(keys[0], request.embedding):
            return UNFAMILIAR
        used = [key for key in keys if state.versions.served(key) is not None and state.used(key)]
        return state.watches.validity((used or list(keys[:1]))[-1]).reason() if request.constrained else ""

    def at_hand(self, request: Request, adapter: AdapterRef) -> bool:
        """Whether the model's host holds it. Takes microseconds."""
        host = self._state.hosts.get(request.model)
        return host is None or host.holds_adapter(str(adapter) if adapter.pinned else adapter.key)

    async def bring(self, request: Request, adapter: AdapterRef) -> None:
        """Put it on the model's host again, where it had to make room. What cannot be brought is logged and
        counted. Raises HostAway.
        """
        state, versions = self._state, self._state.versions
        line = versions.line(AdapterKey.parse(adapter.key))
        reason = "it is not served any more"
        try:
            await (versions.pins.pin(adapter) if adapter.pinned else versions.bring(line))
        except HostAway:
            raise
        except SonaError as error:
            reason = str(error)
        found = self.at_hand(request, adapter)
        state.counters["adapters_brought" if found else "adapters_missing"] += 1
        if not found:
            _log.warning("request %s is answered without adapter %s: %s", request.id, adapter, reason)

    def observe(self, trajectory: Trajectory) -> None:
        """An answer has ended: what it says of the version that gave it. Takes well under a millisecond."""
        state = self._state
        if trajectory.outcome == "complete" and trajectory.learn and trajectory.model in state.hosts:
            state.watches.answered(chain(trajectory.model, self._whose(trajectory), trajectory.route), trajectory)

    async def require_answer(self, feedback: Feedback) -> None:
        """For those who do not wait: raises CaptureGone when what the feedback is about is certainly gone, with
        that as its outcome. A look into the host and one row of the store.
        """
        try:
            await self._instant.require_answer(feedback)
        except HostAway:
            return  # that is seen when it is back
        except CaptureGone as error:
            await self._intake.give_up(feedback, error)
            raise

    async def learn(self, feedback: Feedback, *, wait: bool = False) -> FeedbackOutcome:
        """Takes feedback that the store has committed. Raises CaptureGone only to those who wait."""
        if self._tasks is None:
            return queued(feedback, "the learner does not run; the feedback is kept and will be learned later")
        item = self._inbox.offer(feedback)
        if item is None:
            return queued(feedback, "the learner is behind; the feedback is kept and will be learned")
        if not wait:
            return queued(feedback, "")
        item.awaited = True
        await item.done.wait()
        if item.error is not None:
            raise item.error
        return item.outcome or queued(feedback, "it could not be learned now; it is kept")

    async def unlearn(
        self, model: str, whose: str, feedback_id: str, *, request_id: str = "", given_at: float = 0.0
    ) -> None:
        """Take one lesson of this `pupil` back for good; needs no host. When it returns, no replay learns from it
        any more, ever. As soon as the host is there, what may hold it goes back to before it was given (`given_at`,
        ``time.time()``; 0: nobody knows), and is fitted anew to what others taught since. `request_id`: of the
        answer that it was about, which tells what it taught.
        """
        root = AdapterKey(model, whose)
        await self._background.unlearn(root, feedback_id, request_id=request_id, given_at=given_at)

    async def settle(self) -> None:
        """Returns when every feedback given so far is learned (or has failed and is tried again later) and no
        replay is due.
        """
        while not (self._inbox.idle and self._background.idle):
            with anyio.move_on_after(0.05):
                await self._intake.progress.wait()

    async def tick(self) -> None:
        """Call it as often as you like: replays every key that has learned anything since its last replay, and
        consolidates when `background_interval_ms` have passed since that was done last. Waits for nothing. The
        learner does both by itself, too.
        """
        self._background.request_new()
        await self._background.request_cycles()

    async def force_learn(self) -> str:
        """Replay and consolidate now whatever was taught since, and wait for it. Returns a sentence."""
        before = self._state.counters.copy()
        self._background.request_new()
        keys = await self._background.request_cycles(forced=True)
        await self.settle()
        done = self._state.counters["consolidations"] - before["consolidations"]
        replays = self._state.counters["replays"] - before["replays"]
        did = f"{replays} replays, {done} consolidations"
        return f"Forced learning: {len(keys)} adapters -> {did}, status: completed"

    async def pin(self, ref: AdapterRef, *, model: str | None = None, tenant: str | None = None) -> AdapterRef:
        """Make exactly this version servable, as ``key@version``. Raises NotFound, NotPermitted, HostAway."""
        named = ref.key.rsplit("/", 2)[0]
        if named in self._state.expected:
            self._state.host(named)
        return await self._state.versions.pins.pin(ref, model=model, tenant=tenant)

    async def rollback(self, key: str, version: int, *, reason: str = "rollback") -> None:
        """Serve this version again (0: the base model). The feedback behind what is undone leaves replay.

        Raises NotFound when the key or version is not known, HostAway.
        """
        try:
            parsed = AdapterKey.parse(key)
        except ValueError as error:
            raise NotFound(str(error)) from error
        if parsed.model not in self._state.expected or version < 0:
            raise NotFound(f"adapter {key}@{version} is not known")
        await self._guard.rollback(parsed, version, reason=reason)

    async def freeze(self) -> None:
        """Stop publishing; judgements are still counted and kept for replay. Survives a restart."""
        await self._state.versions.set_frozen(True)

    async def thaw(self) -> None:
        """Publish again, beginning with a replay of what came meanwhile."""
        await self._state.versions.set_frozen(False)
        await self.tick()

    async def adapters(self, *, tenant: str | None = None) -> list[dict[str, Any]]:
        """Every kept version, without weights, newest last within a key."""
        return await self._inspection.versions(tenant=tenant)

    async def adapter(self, key: str, version: int) -> dict[str, Any]:
        """One version, its size, and what is known of its key. Raises NotFound."""
        return await self._inspection.show(key, version)

    async def difference(self, key: str, one: int, other: int) -> dict[str, Any]:
        """How two versions of a key (0: the base model) differ on kept answers. Raises NotFound, HostAway."""
        return await self._inspection.difference(key, one, other)

    def budgets(self) -> list[Budget]:
        """Adapters, lessons and watches in memory."""
        state = self._state
        return [state.versions.shelf.budget(), state.books.budget(), state.watches.budget()]

    def gates(self) -> dict[str, Counter[tuple[str, str]] | Counter[str]]:
        """What a scrape may ask for at any time, in a millisecond. By tenant, an end user's own beside it: versions
        held back, by ``(tenant, gate)``; answers of versions on trial; keys by ``(tenant, state)`` of what is known
        of constrained answers. The last two of what is in memory.
        """
        trial, constrained = self._state.watches.counts()
        return {"gated": self._state.refusals.by_tenant(), "trial": trial, "constrained": constrained}

    def stats(self) -> dict[str, Any]:
        """Counters and what is served, JSON-able."""
        state = self._state
        served = {str(line.key): line.served.version for line in state.versions.lines() if line.served is not None}
        counts = {
            str(root.at(group)): n
            for root, ledger in state.ledgers.items()
            for group, n in ledger.counts.items()
            if not is_pattern(group) or state.active(root.at(group))
        }
        return {
            "learning": state.mode,
            "frozen": state.versions.frozen,
            "pending": len(self._inbox),
            "idle": self._inbox.idle and self._background.idle,
            "inbox_overflows": self._inbox.overflows,
            "counters": dict(state.counters),
            "gates": state.refusals.view(),
            "watched": state.watches.view(),
            "canaries": state.versions.canaries(),
            "served": served,
            "accepted_feedback": counts,
            "rewards": {str(root): ledger.baseline.tenant.mean for root, ledger in state.ledgers.items()},
            "problems": list(state.versions.problems),
            "budgets": [one.view() for one in self.budgets()],
        }


def _keys(request: Request) -> tuple[AdapterKey, ...]:
    """Not of the route's model: a fallback may have taken its place."""
    return chain(request.model, pupil(request.principal.tenant, request.principal.user), request.route)


def _whose(trajectory: Trajectory) -> str:
    return pupil(trajectory.tenant, trajectory.user)
