"""Options that were given with nothing in them, as an unset variable of a shell leaves them."""

from __future__ import annotations

import click

__all__ = ["given", "not_empty"]


def given(value: str, option: str | None = None) -> str:
    """The value. Raises click.BadParameter when it is empty; in an option's callback click knows its name."""
    if not value.strip():
        raise click.BadParameter("it is empty; is a variable not set?", param_hint=option)
    return value


def not_empty(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Callback of an option that may be left out, and means something else then."""
    return None if value is None else given(value)
