"""Fallback: tries the deployments of the chosen model, then the fallback models, before the first byte."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

from ..errors import NotFound, SonaError
from ..events import Event, Head, Request, RouteDecision
from ..protocols import Handler
from .rota import FAILURES, Rota, may_go_elsewhere

__all__ = ["fallback"]

_log = logging.getLogger(__name__)

WILDCARD = "*"
"""The group that takes every name that no other group has."""


def fallback(groups: Mapping[str, Sequence[Handler]], *, clock: Callable[[], float] = time.monotonic) -> Handler:
    """The innermost handler of the proxy: ``groups`` maps a ``model_name`` to its deployments' handlers.

    An attempt counts as failed while nothing of its answer has been handed on: the first `Delta` or `Finish` is
    awaited before `Head` goes up. Only errors that another deployment might not have are retried; the last
    one is raised when none is left.
    """
    table = {name: Rota(handlers, clock) for name, handlers in groups.items()}

    @asynccontextmanager
    async def handle(request: Request) -> AsyncIterator[AsyncIterator[Event]]:
        decision = request.route or RouteDecision(model=request.model, reason="named")
        last: SonaError | None = None
        async with AsyncExitStack() as stack:
            for name, group, index, handler in _attempts(table, decision):
                attempt = request if request.model == name else dataclasses.replace(request, model=name)
                try:
                    events = await stack.enter_async_context(
                        _opened(handler, attempt, _stamp(decision, name, last))
                    )
                except FAILURES as error:
                    if not may_go_elsewhere(error):
                        raise
                    group.failed(index)
                    last = error
                    _log.warning("%s failed before its first byte: %s", name, error)
                    continue
                yield events
                return
            raise last if last is not None else NotFound(f"the model {decision.model!r} does not exist")

    return handle


def _attempts(
    table: Mapping[str, Rota[Handler]], decision: RouteDecision
) -> Iterator[tuple[str, Rota[Handler], int, Handler]]:
    for name in dict.fromkeys((decision.model, *decision.fallbacks)):
        group = table.get(name) or table.get(WILDCARD)
        if group is not None:
            for index, handler in group.in_turn():
                yield name, group, index, handler


def _stamp(decision: RouteDecision, name: str, error: Exception | None) -> RouteDecision:
    if error is None and name == decision.model:
        return decision
    reason = "retry" if name == decision.model else f"fallback:{decision.model}"
    return dataclasses.replace(decision, model=name, reason=reason)


@asynccontextmanager
async def _opened(handler: Handler, request: Request, stamp: RouteDecision) -> AsyncIterator[AsyncIterator[Event]]:
    """Enters only once the answer's first content (or its clean end) is there."""
    async with handler(request) as events:
        held: list[Event] = []
        async for event in events:
            held.append(event)
            if not isinstance(event, Head):
                break
        async with aclosing(_stamped(held, events, stamp)) as stamped:
            yield stamped


async def _stamped(
    held: list[Event], events: AsyncIterator[Event], stamp: RouteDecision
) -> AsyncGenerator[Event, None]:
    """What was held, then the rest; the route on each `Head`."""
    for event in held:
        yield dataclasses.replace(event, route=stamp) if isinstance(event, Head) else event
    async for event in events:
        yield event
