"""What the plug-in answers to a call that it cannot serve."""

from __future__ import annotations

__all__ = ["Refusal"]


class Refusal(Exception):
    """Bad input, or something that is not here; `gone` names the handles that are not."""

    def __init__(self, message: str, *, gone: list[str] | None = None) -> None:
        super().__init__(message)
        self.gone = gone
