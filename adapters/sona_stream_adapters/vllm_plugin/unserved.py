"""Which answers were not served as they were bound, and why: their callers believe in an adapter they had not."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["PASSED_BY", "Unserved"]

PASSED_BY = "the hook had switched itself off before"
"""How the reason begins if none of the answer's tokens was drawn with the hook."""

_MAX = 4096
_NEWEST = 256


class Unserved:
    """Capture id -> reason, the newest of them."""

    def __init__(self) -> None:
        self._reasons: OrderedDict[str, str] = OrderedDict()

    def note(self, rid: str, reason: str) -> None:
        """The first reason stays."""
        self._reasons.setdefault(rid, reason)
        while len(self._reasons) > _MAX:
            self._reasons.popitem(last=False)

    def reason(self, rid: str) -> str:
        """Empty when nothing is known against it."""
        return self._reasons.get(rid, "")

    def newest(self) -> dict[str, str]:
        """As many as a message holds."""
        return dict(list(self._reasons.items())[-_NEWEST:])

    def __len__(self) -> int:
        return len(self._reasons)
