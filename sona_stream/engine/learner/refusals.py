"""What gates held back, by model and tenant: counted, with the last reason in words."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any

from .keys import EVERYTHING, AdapterKey

__all__ = ["Refusals"]

_ROOTS = 1024
"""Models and tenants that are remembered; the ones longest without a refusal are forgotten first."""


class Refusals:
    """In memory: it counts from the program's start, as every other counter does."""

    def __init__(self) -> None:
        self._counts: OrderedDict[AdapterKey, Counter[str]] = OrderedDict()
        self._last: dict[AdapterKey, str] = {}
        self.total: Counter[str] = Counter()

    def add(self, key: AdapterKey, gate: str, reason: str) -> None:
        """One version of this key was held back, or taken back, by this gate."""
        root = key.at(EVERYTHING)
        self.total[gate] += 1
        self._counts.setdefault(root, Counter())[gate] += 1
        self._counts.move_to_end(root)
        self._last[root] = f"{key.group}: {reason}"
        while len(self._counts) > _ROOTS:
            gone, _ = self._counts.popitem(last=False)
            del self._last[gone]

    def counts(self, key: AdapterKey) -> dict[str, int]:
        """Gate -> versions of this model and tenant."""
        return dict(self._counts.get(key.at(EVERYTHING), ()))

    def by_tenant(self) -> Counter[tuple[str, str]]:
        """(tenant, gate) -> versions, of all models."""
        found: Counter[tuple[str, str]] = Counter()
        for root, counts in self._counts.items():
            for gate, count in counts.items():
                found[root.tenant, gate] += count
        return found

    def view(self) -> dict[str, dict[str, Any]]:
        """``model/tenant/*`` -> the counts by gate, and the last reason."""
        return {str(root): {**counts, "last": self._last[root]} for root, counts in self._counts.items()}
