"""The background loop: replay of a key's recent lessons, gated as a whole and published as one version."""

from __future__ import annotations

import logging
from collections import deque

import anyio

from ...errors import HostError
from ...lora import AdapterRecord, LoraWeights
from .gates import Verdict
from .keys import AdapterKey
from .lessons import Lesson
from .optimiser import shifted
from .replay import Fit, Plan, fit, weigh
from .state import State
from .versions import Line

__all__ = ["BackgroundLoop"]

_log = logging.getLogger(__name__)
_BACKTRACK = (1.0, 0.5, 0.25)  # shares of a refit that are offered to the gates


class BackgroundLoop:
    """Which keys are due, and their replay, one key at a time."""

    def __init__(self, state: State) -> None:
        self._state = state
        settings = state.settings
        # Older lessons than these are no longer in replay either.
        self._newest = max(settings.replay_capacity, settings.replay_every)
        self._new: dict[AdapterKey, deque[str]] = {}
        self._due: dict[AdapterKey, None] = {}
        self._wake = anyio.Event()
        self.busy = False

    def note(self, feedback_id: str, keys: tuple[AdapterKey, ...]) -> None:
        """One more lesson for these keys; every `replay_every`-th makes a key due."""
        for key in keys:
            news = self._new.setdefault(key, deque(maxlen=self._newest))
            news.append(feedback_id)
            if len(news) >= self._state.settings.replay_every:
                self.request(key)

    def request(self, key: AdapterKey) -> None:
        """Make a key due now."""
        self._due[key] = None
        self._wake.set()

    def request_new(self) -> None:
        """Make due every key with lessons since its last replay."""
        for key in self._new:
            self.request(key)

    @property
    def idle(self) -> bool:
        """Nothing due and nothing running."""
        return not self._due and not self.busy

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            while self._due:
                key = next(iter(self._due))
                del self._due[key]
                self.busy = True
                try:
                    await self._attempt(key)
                finally:
                    self.busy = False

    async def _attempt(self, key: AdapterKey) -> None:
        """A replay that fails costs nothing but its own result: the served version stays."""
        try:
            await self.replay(key)
        except HostError as error:
            self._state.counters["host_errors"] += 1
            _log.warning("adapter %s: the host refused a replay: %s", key, error)
        except Exception:
            self._state.counters["failures"] += 1
            _log.exception("adapter %s: replay failed", key)

    async def replay(self, key: AdapterKey) -> AdapterRecord | None:
        """Refit, gate, publish. None when there was nothing to learn or nothing passed."""
        state = self._state
        off = state.mode == "off" or state.rate == 0 or state.settings.replay_steps == 0
        if off or state.versions.frozen:
            return None
        plan = self._plan()
        lessons = (await state.book(key)).of(key)
        weighed = weigh(lessons, plan)
        if not weighed:
            return None
        line = state.versions.line(key)
        epoch, origin = line.epoch, state.beginning(line, lessons[-1])
        result = await fit(state.hosts[key.model], weighed, *origin, plan, seed=line.latest)
        state.counters["replays"] += 1
        state.counters["replay_steps"] += result.steps
        async with line.lock:
            if line.epoch != epoch or state.versions.frozen:
                return None
            return await self._publish(line, origin[0], result, lessons[-1])

    async def _publish(self, line: Line, start: LoraWeights, result: Fit, last: Lesson) -> AdapterRecord | None:
        """What instant steps learned meanwhile stays: the refit's change is added to the version of now."""
        state = self._state
        now = state.beginning(line, last)[0]
        verdict = Verdict("", "", {})
        for share in _BACKTRACK:
            weights = shifted(start, result.weights, now, share)
            verdict = await state.gate(line.key, weights, None)
            if verdict.ok:
                news = tuple(self._new.pop(line.key, ()))
                metrics = {**verdict.metrics, "share": share, "steps": float(result.steps)}
                return await state.versions.publish(
                    line, weights, result.moments, reason="replay", metrics=metrics, feedback_ids=news
                )
        state.counters[f"gated_{verdict.gate}"] += 1
        _log.info("adapter %s: the refit is not published: %s", line.key, verdict.reason)
        return None

    def forget(self, key: AdapterKey) -> None:
        """What was noted for this key no longer counts (after a rollback)."""
        self._new.pop(key, None)
        self._due.pop(key, None)

    def _plan(self) -> Plan:
        settings = self._state.settings
        return Plan(
            steps=settings.replay_steps,
            tokens=settings.replay_tokens,
            top_k=settings.replay_top_k or None,
            anchor=settings.anchor,
            ratio_clip=settings.ratio_clip,
            rate=self._state.rate,
            shrinkage=settings.baseline_shrinkage,
            quality_threshold=self._state.rates.quality_threshold,
            max_kl_to_base=settings.max_kl_to_base,
        )
