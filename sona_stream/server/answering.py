"""Answers that are on their way, by every name that feedback may give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..events import Principal

__all__ = ["Answering"]

Whose = Principal | None
"""Who may judge it; None: nobody can."""


class Answering:
    """One for a process. Names need not be unique: clients choose some of them."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}
        self._named: dict[str, dict[str, Whose]] = {}

    def __len__(self) -> int:
        return len(self._names)

    def begin(self, request_id: str, whose: Whose, names: Iterable[str]) -> None:
        """`end` belongs in a ``finally``."""
        self._names[request_id] = {request_id, *names}
        for name in self._names[request_id]:
            self._named.setdefault(name, {})[request_id] = whose

    def name(self, request_id: str, name: str) -> None:
        """One more name of an answer that has begun."""
        self._names[request_id].add(name)
        self._named.setdefault(name, {})[request_id] = self._named[request_id][request_id]

    def end(self, request_id: str) -> None:
        """Nothing happens for one that is not there."""
        for name in self._names.pop(request_id, ()):
            of_this_name = self._named[name]
            del of_this_name[request_id]
            if not of_this_name:
                del self._named[name]

    def find(self, name: str) -> Mapping[str, Whose]:
        """Request id -> who may judge it."""
        return self._named.get(name, {})
