"""What a model that runs here, or OpenAI's reference, has against a request that can be routed all the same.

Upstreams have limits of their own (vLLM's -1 for "as many tokens as there is room", a temperature of 3, roles of a
template's own), and a proxy must not be stricter than they are. So nothing is refused here: it is noted, and raised
by a backend that samples itself.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

__all__ = ["Objections", "complaint"]

_AT = re.compile(r"^(.*) - at `\$(.*)`$", re.DOTALL)
_INT64 = 1 << 63
_SHOWN_CHARS = 80

Value = TypeVar("Value")


def complaint(param: str, must: str, got: object = None) -> str:
    """``<param> <must>, got <got>``."""
    return f"{param} {must}" + ("" if got is None else f", got {got!r:.{_SHOWN_CHARS}}")


class Objections:
    """Of one request, in the order in which they were found."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    @property
    def all(self) -> tuple[tuple[str, str], ...]:
        """(field, the whole complaint)."""
        return tuple(self._found)

    def note(self, param: str, must: str, got: object = None) -> None:
        """One field, and what it must be."""
        self._found.append((param, complaint(param, must, got)))

    def unserved(self, param: str, value: Any) -> None:
        """Notes a field that would change the answer, and that no model that runs here reads."""
        if value:
            self.note(param, "must be left out where a model runs here", value)

    def within(self, param: str, value: float | None, low: int, high: int) -> None:
        """Notes a value that is there and beyond its limits."""
        if value is not None and not low <= value <= high:
            self.note(param, f"must be between {low} and {high}", value)

    def read(self, param: str, value: Any, kind: type[Value]) -> Value | None:
        """The value, read as generously as servers do (``100.0`` and ``"100"`` are 100); None, and a note, for what
        cannot be read, or not be kept in 64 bits.
        """
        if value is None:
            return None
        try:
            found = msgspec.convert(value, kind, strict=False)
        except msgspec.ValidationError as error:
            at = _AT.match(str(error))
            what, path = (at.group(1), param + at.group(2)) if at else (str(error), param)
            self._found.append((path, f"{path}: {what}"))
            return None
        if isinstance(found, int | float) and not -_INT64 <= found < _INT64:
            self.note(param, f"must be between {-_INT64} and {_INT64 - 1}", value)
            return None
        return found
