"""Acts on what the watches say: goes back to the trusted version, or lets a canary serve everybody."""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio

from ...errors import HostAway, HostError, NotFound
from .keys import AdapterKey
from .line import Line
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
        await self._undo(key, version, reason, everything=version == 0)

    async def _act(self, key: AdapterKey) -> None:
        state = self._state
        if not state.versions.has(key):  # nothing to go back from, nor to let go on
            return
        watch, line = await state.watches.heard(key), state.versions.line(key)
        finding = None if watch is None else watch.finding()
        if watch is not None and finding is not None:
            await self._go_back(key, watch.reference, finding)
        elif watch is not None and watch.accepted and self._may_serve(line) and await state.versions.promote(line):
            state.counters["canaries_accepted"] += 1
            await state.watches.save(key, least=1)
        await state.watches.save(key)

    def _may_serve(self, line: Line) -> bool:
        return line.candidate is not None and not self._state.versions.frozen

    async def _go_back(self, key: AdapterKey, version: int, finding: Finding) -> None:
        """Without anybody asking."""
        state = self._state
        _log.warning("adapter %s: back to version %d: %s", key, version, finding.reason)
        try:
            await self._undo(key, version, finding.reason, everything=False)
        except NotFound:
            version = 0
            await self._undo(key, version, finding.reason, everything=False)
        state.counters["rolled_back"] += 1
        state.refuse(key, finding.gate, f"back to version {version}: {finding.reason}")

    async def _undo(self, key: AdapterKey, version: int, reason: str, *, everything: bool) -> None:
        """What is served, what is known of it, and that the lessons of what is undone leave replay, which would
        bring it back, become durable in one piece. Kept versions do not name all lessons of a long trial: its watch
        does.
        """
        state = self._state
        state.host(key.model)
        async with state.versions.going_back(key, version, reason=reason) as back:
            watch = await state.watches.ready(key)
            lessons = [*back.lessons, *(watch.lessons if version <= watch.reference else ())]
            await state.withdraw(key, lessons, back.writes, everything=everything)
            known = watch.back_to(version, back.newest, trusted=True)
            done = state.watches.restart(key, known, back.writes)
        done()
        self._forget(key)
