"""Which models the upstreams behind a wildcard have."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence

from ..errors import NotFound, NotReady, SonaError, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from ..protocols import Backend, ModelLister

__all__ = ["UpstreamModels"]

_log = logging.getLogger(__name__)

KEPT_S = 30.0
"""How long a list is believed."""
FAILED_S = 2.0
"""How long an upstream that could not say is left alone."""


class UpstreamModels:
    """Asked when somebody wants to know; remembered for a while. Belongs to one event loop."""

    def __init__(self, backends: Iterable[Backend], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._listers = [backend for backend in backends if isinstance(backend, ModelLister)]
        self._clock = clock
        self._told: list[Sequence[str]] = [()] * len(self._listers)
        self._names: tuple[str, ...] = ()
        self._away: SonaError | None = None
        self._refused: SonaError | None = None
        self._fresh_until = float("-inf")
        self._asking = asyncio.Lock()

    async def names(self) -> tuple[str, ...]:
        """Each name once, in the upstreams' order; what was known before where an upstream does not say."""
        if not self._listers or self._clock() < self._fresh_until:
            return self._names
        async with self._asking:
            if self._clock() >= self._fresh_until:
                await self._ask()
        return self._names

    async def to_route_to(self) -> tuple[str, ...]:
        """The same. When there is none because an upstream is away, or does not tell: raises NotReady or NotFound
        that says who and why.
        """
        names = await self.names()
        if not names and self._away is not None:
            raise NotReady(f"which models there are is not known: {self._away}")
        if not names and self._refused is not None:
            raise NotFound(f"which models there are is not told: {self._refused}")
        return names

    async def _ask(self) -> None:
        away, refused = None, None
        for place, lister in enumerate(self._listers):
            try:
                self._told[place] = await lister.list_models()
            except SonaError as error:
                away, refused = (error, refused) if _is_passing(error) else (away, error)
                _log.info("the models behind the wildcard are not known: %s", error)
        self._names = tuple(dict.fromkeys(name for told in self._told for name in told))
        self._away, self._refused = away, refused
        self._fresh_until = self._clock() + (FAILED_S if away or refused else KEPT_S)


def _is_passing(error: SonaError) -> bool:
    """Whether the upstream may say something else later."""
    if isinstance(error, NotReady | UpstreamTimeout | UpstreamUnreachable):
        return True
    return isinstance(error, UpstreamError) and error.retryable
