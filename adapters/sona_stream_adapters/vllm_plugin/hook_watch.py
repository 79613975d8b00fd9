"""Whether the hook works, for those who wait for an answer: known to a tenth of a second, asked no more often."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["HookWatch"]

MAX_AGE_S = 0.1
"""A look is a call between two steps of the model."""


class HookWatch:
    """``look`` asks the workers. One look at a time, whoever waits for it."""

    def __init__(
        self, look: Callable[[], Awaitable[dict[str, Any]]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._look, self._clock = look, clock
        self._looking: asyncio.Task[str] | None = None
        self._began = float("-inf")

    def begin(self) -> asyncio.Task[str]:
        """A look that is not older than `MAX_AGE_S`: one that ended, or one that runs."""
        looking = self._looking
        if looking is None or (looking.done() and self._clock() - self._began >= MAX_AGE_S):
            self._began = self._clock()
            looking = self._looking = asyncio.create_task(self._asked())
        return looking

    async def off(self) -> str:
        """Why the hook is off; empty while it works, and when nobody can tell."""
        return await asyncio.shield(self.begin())

    async def _asked(self) -> str:
        try:
            return str((await self._look()).get("disabled") or "")
        except Exception:  # an engine that does not answer is told of where its answers are missed
            return ""
