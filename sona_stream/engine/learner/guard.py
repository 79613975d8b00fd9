"""Acts on what the watches say: goes back to the trusted version, or lets a canary serve everybody."""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio

from ...errors import HostAway, HostError, NotFound
from .keys import AdapterKey
from .state import State
from .watch import Finding

__all__ = ["Guard"]

_log = logging.getLogger(__name__)


class Guard:
    """Every going back, asked for or not, comes through here."""

    def __init__(self, state: State, forget: Callable[[AdapterKey], None]) -> None:
        """``forget``: what was noted for a key's next replay no longer counts."""
        self._state, self._forget = state, forget

    async def run(self) -> None:
        """For ever."""
        watches = self._state.watches
        while True:
            await watches.wake.wait()
            watches.wake = anyio.Event()
            while watches.due:
                key = next(iter(watches.due))
                del watches.due[key]
                try:
                    await self._act(key)
                except HostAway as error:
                    _log.info("adapter %s: what its answers say waits: %s", key, error)
                except HostError as error:
                    self._state.counters["host_errors"] += 1
                    _log.warning("adapter %s: the host refused what its answers say: %s", key, error)
                except Exception:
                    self._state.counters["failures"] += 1
                    _log.exception("adapter %s: what its answers say could not be acted on", key)

    async def rollback(self, key: AdapterKey, version: int, *, reason: str) -> None:
        """Serve this version again. The feedback behind what is undone leaves replay."""
        undone = await self._undo(key, version, reason)
        await self._state.withdraw(key, undone, everything=version == 0)
        self._state.watches.of(key).begin_anew(version)
        await self._state.watches.renew(key)

    async def _act(self, key: AdapterKey) -> None:
        state = self._state
        watch, line = state.watches.of(key), state.versions.line(key)
        finding = watch.finding()
        if finding is not None:
            await self._go_back(key, watch.reference, finding, list(watch.lessons))
        elif line.candidate is not None and watch.accepted:
            await state.versions.promote(line)
            state.counters["canaries_accepted"] += 1
        await state.watches.save(key)

    async def _go_back(self, key: AdapterKey, version: int, finding: Finding, lessons: list[str]) -> None:
        """Without anybody asking. Lessons of the versions on trial leave replay, or it would bring them back."""
        state = self._state
        _log.warning("adapter %s: back to version %d: %s", key, version, finding.reason)
        try:
            undone = await self._undo(key, version, finding.reason)
        except NotFound:
            undone, version = await self._undo(key, 0, finding.reason), 0
        await state.withdraw(key, [*undone, *lessons], everything=False)
        watch = state.watches.of(key)
        if watch.reference == version:
            watch.gone_back()
        else:
            watch.begin_anew(version)
        await state.watches.renew(key)
        state.counters["rolled_back"] += 1
        state.refuse(key, finding.gate, f"back to version {version}: {finding.reason}")

    async def _undo(self, key: AdapterKey, version: int, reason: str) -> list[str]:
        self._state.host(key.model)
        undone = await self._state.versions.rollback(key, version, reason=reason)
        self._forget(key)
        return undone
