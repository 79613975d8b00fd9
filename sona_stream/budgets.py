"""Bounds on memory: what is held under them, and what makes room when one is reached."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

__all__ = ["BoundedHost", "Budget", "BudgetKeeper"]


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """A bound on memory, and what is held under it now."""

    what: str
    """that is held: adapters, episodes, captures, lessons"""
    setting: str
    """that sets the bound"""
    items: int
    nbytes: int
    limit: int
    """bytes"""
    evictions: int
    """items that made room for others since the start"""

    def view(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)


@runtime_checkable
class BudgetKeeper(Protocol):
    """Holds things under bounds."""

    def budgets(self) -> Sequence[Budget]:
        """Those kept in this process. Costs nothing."""
        ...


@runtime_checkable
class BoundedHost(Protocol):
    """A `HiddenStateHost` whose memory for adapters is bounded. Of those that no answer under way uses, the least
    recently used leave; they are put again before the next request that names them.
    """

    def holds_adapter(self, key: str) -> bool:
        """Whether requests may name `key` without another `put_adapter`; it counts as used. Costs nothing."""
        ...
