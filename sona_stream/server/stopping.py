"""What clients hear of the server's own end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from ..errors import SonaError

__all__ = ["Stopping", "last_words"]

_LIMIT_S = 1.0


class Stopping(SonaError):
    """The server is shutting down."""

    status = 503
    code = "shutting_down"

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


async def last_words(telling: Coroutine[Any, Any, None]) -> None:
    """Runs ``telling``, but waits a second at most: a client that does not read must not hold the server's end."""
    try:
        async with asyncio.timeout(_LIMIT_S):
            await telling
    except TimeoutError:
        return
