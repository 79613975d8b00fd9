"""The background loop: replay of a key's recent lessons, gated as a whole and published as one version; and every
`background_interval_ms` the slow half of learning (see `cycle`).
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterable, Sequence

import anyio
import numpy as np

from ...errors import HostAway, HostError
from ...lora import AdapterRecord, LoraWeights
from .appraisal import evidence_of, stands
from .cycle import Cycle
from .evidence import Evidence
from .gates import Verdict
from .inbox import Failed, again
from .keys import EVERYTHING, AdapterKey
from .ledger import Ledger
from .lessons import Lesson
from .optimiser import Moments, shifted
from .replay import Fit, Plan, fit, weigh
from .state import State
from .unlearning import Unlearning
from .versions import Line

__all__ = ["BackgroundLoop"]

_log = logging.getLogger(__name__)
_REPLAYED = "replayed"
_LAST = "learner/cycle"
_BACKTRACK = (1.0, 0.5, 0.25)  # shares of a refit that are offered to the gates


class BackgroundLoop:
    """Which keys are due, and their replay, one key at a time."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._due: dict[AdapterKey, None] = {}
        self._away: dict[AdapterKey, None] = {}
        """Replays that wait for their host."""
        self._again: dict[AdapterKey, int] = {}
        """Key whose replay is under way, or failed -> how many lessons must wait until one is due again"""
        self._late: dict[AdapterKey, Failed] = {}
        """What failed to go back, and is tried again"""
        self._unlearning = Unlearning(state)
        self._cycle = Cycle(state)
        self._cycles: dict[AdapterKey, bool] = {}
        """Keys whose slow half is due; whether it was forced"""
        self._last = time.time()
        self._wake = anyio.Event()
        self._at: AdapterKey | None = None

    def look(self, keys: Iterable[AdapterKey]) -> None:
        """These keys have been taught: every `replay_every`-th lesson makes one due."""
        for key in keys:
            ledger = self._state.ledgers.get(key.at(EVERYTHING))
            least = self._again.get(key, self._state.settings.replay_every)
            if ledger is not None and ledger.unreplayed.get(key.group, 0) >= least:
                self.request(key)

    async def unlearn(self, root: AdapterKey, feedback_id: str, *, request_id: str, given_at: float) -> None:
        """A lesson is taken back, durable when it returns. What is under way with it is void, and what holds it is
        fitted anew.
        """
        found = await self._unlearning.take_back(
            root, feedback_id, request_id=request_id, given_at=given_at, running=lambda: self._at
        )
        for key in found:
            self.request(key)

    def request(self, key: AdapterKey) -> None:
        """Make a key due now."""
        self._due[key] = None
        self._wake.set()

    def retry(self, model: str) -> None:
        """The model's host is back: make due what waited for it."""
        for key in [key for key in self._away if key.model == model]:
            del self._away[key]
            self.request(key)

    def request_new(self) -> None:
        """Make due every key with lessons since its last replay."""
        for ledger in self._state.ledgers.values():
            self._request_of(ledger, least=1)

    @property
    def idle(self) -> bool:
        """Nothing due and nothing running."""
        return not self._due and not self._cycles and self._at is None

    async def request_cycles(self, *, forced: bool = False) -> list[AdapterKey]:
        """Make due the slow half of every key that was taught enough, when the interval is over (forced: now, and
        of every key that was taught at all). -> those keys
        """
        if not forced and self._pause() > 0:
            return []
        keys = self._cycle.due(forced=forced)
        self._cycles |= dict.fromkeys(keys, forced)
        self._last = time.time()
        await self._state.store.put_blob(_LAST, str(self._last).encode())
        self._wake.set()
        return keys

    def _pause(self) -> float:
        """Seconds to the next cycle. A clock that was set back costs at most one interval."""
        interval = self._state.rates.background_interval_ms / 1000.0
        return min(self._last + interval - time.time(), interval)

    async def run(self) -> None:
        """For ever."""
        await self._resume()
        while True:
            late = min((failed.due for failed in self._late.values()), default=math.inf) - anyio.current_time()
            with anyio.move_on_after(max(min(self._pause(), late), 0.0)):
                await self._wake.wait()
            self._wake = anyio.Event()
            self._due |= {key: None for key, failed in self._late.items() if failed.due <= anyio.current_time()}
            await self._attempt_cycles_on_time()
            while self._due or self._cycles:
                self._at = key = next(iter(self._due or self._cycles))  # what is known at once comes first
                try:
                    if key in self._due:
                        del self._due[key]
                        await self._attempt(key)
                    else:
                        await self._attempt(key, forced=self._cycles.pop(key))
                finally:
                    self._at = None

    async def _attempt_cycles_on_time(self) -> None:
        try:
            await self.request_cycles()
        except Exception:
            self._state.counters["failures"] += 1
            self._last = time.time()
            _log.exception("the background cycle could not begin; it is tried again after its interval")

    async def _resume(self) -> None:
        """What a crash or a stop left undone: replays that were due, and when the last cycle was."""
        try:
            kept = await self._state.store.get_blob(_LAST)
        except Exception:
            self._state.counters["failures"] += 1
            _log.exception("when the last background cycle was cannot be read; it counts as now")
            return
        if kept is not None:
            self._last = min(float(kept), time.time())

    def resume(self, ledger: Ledger) -> None:
        """Make due what was taught before a stop and not replayed."""
        self._request_of(ledger, least=self._state.settings.replay_every)

    def _request_of(self, ledger: Ledger, least: int) -> None:
        for group in ledger.undone:
            self.request(ledger.root.at(group))
        for group, count in ledger.unreplayed.items():
            key = ledger.root.at(group)
            if count >= least and self._state.active(key):
                self.request(key)

    async def _attempt(self, key: AdapterKey, *, forced: bool | None = None) -> None:
        """A replay or (`forced` given) a cycle. One that fails costs nothing but its own result: the served version
        stays.
        """
        try:
            versions = self._state.versions
            async with versions.shelf.using(versions.line(key)):
                if forced is None:
                    await self.replay(key)
                else:
                    await self._slow(key, forced=forced)
                self._state.books.note(key.at(EVERYTHING))
            self._late.pop(key, None)
        except HostAway as error:
            self._away[key] = None
            self._late.pop(key, None)
            _log.info("adapter %s: the replay waits: %s", key, error)
        except HostError as error:
            self._state.counters["host_errors"] += 1
            _log.warning("adapter %s: the host refused a replay: %s", key, error)
            self._go_back_later(key)
        except Exception:
            self._state.counters["failures"] += 1
            _log.exception("adapter %s: what was learned in the background failed", key)
            self._go_back_later(key)

    def _go_back_later(self, key: AdapterKey) -> None:
        """Where it is still to: nothing else asks for that, and what was taken back is served until then."""
        earlier, ledger = self._late.pop(key, None), self._state.ledgers.get(key.at(EVERYTHING))
        if ledger is not None and key.group in ledger.undone:
            self._late[key] = again(0.0 if earlier is None else earlier.pause)

    async def _slow(self, key: AdapterKey, *, forced: bool) -> None:
        await self._unlearning.go_back(key)
        lessons = len((await self._state.book(key)).of(key))
        plan = dataclasses.replace(self._plan(lessons), steps=self._state.settings.base_steps)
        if await self._cycle.run(key, plan, forced=forced):
            self._state.versions.line(key).fit = None  # of a micro pair that is no more

    async def replay(self, key: AdapterKey) -> AdapterRecord | None:
        """Refit, gate, publish. None when there was nothing to learn or nothing passed."""
        state = self._state
        await self._unlearning.go_back(key)
        off = state.mode == "off" or state.rate == 0 or state.settings.replay_steps == 0
        if off or state.versions.frozen or not state.active(key):  # it came to go back
            return None
        ledger, lessons = await state.ledger(key), (await state.book(key)).of(key)
        begun = time.time()
        waited, news = ledger.unreplayed.get(key.group, 0), tuple(ledger.news.get(key.group, ()))
        self._again[key] = waited + state.settings.replay_every
        plan = self._plan(len(lessons))
        weighed = weigh(lessons, plan)
        if not weighed:
            await self._replayed(key, waited, (), stands=key.group not in ledger.deferring)
            return None
        line = state.versions.line(key)
        epoch, before = line.epoch, line.working
        if key.group == EVERYTHING:
            await state.familiar.learn(key, [one.question for one in lessons])
        start = await self._start(line, lessons)
        evidence, serves = await evidence_of(state, key, lessons), await stands(state, key, lessons)
        pace = state.pace(await state.curvature(key, lessons), evidence, len(lessons))
        elastic = await state.elastic(key, lessons)
        host = state.host(key.model)
        result = await fit(host, weighed, *start, plan, pace, seed=line.latest, elastic=elastic)
        state.counters["replays"] += 1
        state.counters["replay_steps"] += result.steps
        async with line.lock:
            if line.epoch != epoch or state.versions.frozen:
                return None
            published = await self._gated(line, start[0], result, before, evidence, news)
            if published is not None:
                ledger.taken[key.group] = begun
                await ledger.save(state.store)
                await state.versions.publish(line, published)
        await self._replayed(key, waited, news if published else (), stands=serves)
        return published

    async def _replayed(self, key: AdapterKey, lessons: int, named: Sequence[str], *, stands: bool) -> None:
        self._again.pop(key, None)
        await self._state.replayed(key, lessons, named, stands=stands)

    async def _start(self, line: Line, lessons: Sequence[Lesson]) -> tuple[LoraWeights, Moments]:
        """Where the last replay ended; instant steps since then are of lessons that this one sees itself. The first
        replay begins anew, from all that is known by now.
        """
        if line.working is None or _REPLAYED not in line.working.moments:
            return await self._state.birth(line, lessons[-1], await self._state.curvature(line.key, lessons))
        fit = line.fit
        return self._state.fitted(line.working) if fit is None else fit, line.working.moments

    async def _gated(
        self,
        line: Line,
        start: LoraWeights,
        result: Fit,
        before: AdapterRecord | None,
        evidence: Evidence,
        news: Sequence[str],
    ) -> AdapterRecord | None:
        """The next version: the result, and what instant steps learned while the replay ran (since `before`)."""
        state, now = self._state, line.working
        moments = {**result.moments, _REPLAYED: np.ones(1, dtype=np.float32)}
        verdict = Verdict("", "", {})
        for share in _BACKTRACK:
            fit = whole = shifted(start, result.weights, start, share)
            if now is not None and before is not None and now is not before:
                whole = shifted(state.fitted(before), state.fitted(now), fit)
            served, kept = state.version(whole, moments, evidence)
            verdict = await state.gate(line.key, served, None)
            if verdict.ok:
                line.fit = fit
                metrics = {**verdict.metrics, "share": share, "steps": float(result.steps), "evidence": evidence.z}
                return state.versions.next(line, served, kept, reason="replay", metrics=metrics, feedback_ids=news)
        state.refuse(line.key, verdict.gate, verdict.reason)
        _log.info("adapter %s: the refit is not published: %s", line.key, verdict.reason)
        return None

    def forget(self, key: AdapterKey) -> None:
        """What was noted for this key no longer counts (after a rollback)."""
        ledger = self._state.ledgers.get(key.at(EVERYTHING))
        if ledger is None or key.group not in ledger.undone:
            self._due.pop(key, None)
        self._again.pop(key, None)
        self._state.versions.line(key).fit = None

    def _plan(self, lessons: int) -> Plan:
        settings = self._state.settings
        return Plan(
            steps=settings.replay_steps,
            tokens=settings.replay_tokens,
            top_k=settings.replay_top_k or None,
            anchor=self._state.anchor(lessons),
            ratio_clip=settings.ratio_clip,
            shrinkage=settings.baseline_shrinkage,
            quality_threshold=self._state.rates.quality_threshold,
            max_kl_to_base=settings.max_kl_to_base,
        )
