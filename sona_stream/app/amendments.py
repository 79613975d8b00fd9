"""What a backend learns of an answer after its head was sent, put into the answer's record."""

from __future__ import annotations

import dataclasses
import logging
import time

import anyio

from ..protocols import Store
from .watch import Watch

__all__ = ["Amendments"]

_log = logging.getLogger(__name__)

_EVERY_S = 1.0
_WAIT_S = 900.0
"""for an answer that is still being given: its record comes when it ends"""


class Amendments:
    """An answer that its adapter did not serve says so in its record; its tokens, which partly may be the adapter's
    and partly not, are not kept. At storage "none" records stay as they are: whose they were is not known any more.
    """

    def __init__(self, watch: Watch, store: Store) -> None:
        self._watch, self._store = watch, store
        self._waiting: dict[str, tuple[str, float]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await anyio.sleep(_EVERY_S)
            try:
                await self.amend()
            except Exception:  # the record is a courtesy to later readers: feedback asks the host itself
                _log.exception("the records of %d answers cannot be amended now", len(self._waiting))

    async def amend(self) -> None:
        """Whatever is known by now."""
        for rid, reason in self._watch.unserved():
            self._waiting.setdefault(rid, (reason, time.monotonic() + _WAIT_S))
        for rid, (reason, until) in list(self._waiting.items()):
            trajectory = await self._store.trajectory(rid)
            if trajectory is None and time.monotonic() < until:
                continue
            del self._waiting[rid]
            if trajectory is not None and not trajectory.no_capture:
                _log.warning("request %s was not adapted as its answer said: %s", rid, reason)
                amended = dataclasses.replace(trajectory, adapter=None, token_ids=(), no_capture=reason)
                self._store.submit_trajectory(amended)
