"""What the program's parts ask of the learner about memory: adapters that had to leave a host, and bounds."""

from __future__ import annotations

from ..budgets import BudgetKeeper
from ..engine.learner import Learner
from ..errors import SonaError
from ..events import AdapterRef, Request
from .memory import Memories

__all__ = ["Bringing"]


class Bringing:
    """A part of `Application`."""

    _learner: Learner | SonaError
    _memory: Memories | None

    def at_hand(self, request: Request, adapter: AdapterRef) -> bool:
        """`AdapterResolver`."""
        return isinstance(self._learner, SonaError) or self._learner.at_hand(request, adapter)

    async def bring(self, request: Request, adapter: AdapterRef) -> None:
        """`AdapterResolver`."""
        if not isinstance(self._learner, SonaError):
            await self._learner.bring(request, adapter)

    def _budget_keepers(self) -> dict[str, BudgetKeeper]:
        keepers = {"learner": self._learner, "memory": None if self._memory is None else self._memory.memory}
        return {name: one for name, one in keepers.items() if isinstance(one, BudgetKeeper)}
