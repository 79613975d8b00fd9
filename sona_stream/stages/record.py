"""Record: writes down what happened to a request, however it ended, and hands it on without waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Literal

from ..events import Delta, Event, Finish, Head, Request, Score, Trajectory
from ..protocols import Handler, Middleware, TrajectorySink

__all__ = ["record"]

Keep = Literal["none", "features", "text"]


def record(sink: TrajectorySink, keep: Keep, *, clock: Callable[[], float] = time.perf_counter) -> Middleware:
    """One `Trajectory` a request. ``keep`` bounds what it holds: "features" adds token ids, "text" the bodies too;
    "none" neither. The query's embedding is always there, for routing's memory; the store keeps it only from
    "features" on.
    """

    def middleware(handler: Handler) -> Handler:
        @asynccontextmanager
        async def handle(request: Request) -> AsyncIterator[AsyncIterator[Event]]:
            notes = _Notes(request, keep, clock)
            try:
                async with handler(request) as events, aclosing(_noted(events, notes)) as noted:
                    yield noted
            except (asyncio.CancelledError, GeneratorExit):
                notes.outcome = "cancelled"
                raise
            except BaseException:
                notes.outcome = "failed"
                raise
            finally:
                sink.submit(notes.trajectory())

        return handle

    return middleware


async def _noted(events: AsyncIterator[Event], notes: _Notes) -> AsyncGenerator[Event, None]:
    async for event in events:
        notes.note(event)
        yield event


class _Notes:
    """What is remembered of one answer while it passes."""

    def __init__(self, request: Request, keep: Keep, clock: Callable[[], float]) -> None:
        self.request, self.keep, self.clock = request, keep, clock
        self.began = clock()
        self.ttft: float | None = None
        self.head: Head | None = None
        self.finish: Finish | None = None
        self.token_ids: list[int] = []
        self.text: list[str] = []
        self.outcome: Literal["complete", "cancelled", "failed"] = "complete"

    def note(self, event: Event) -> None:
        if isinstance(event, Delta):
            if self.ttft is None:
                self.ttft = self.clock() - self.began
            if self.keep != "none":
                self._keep(event)
        elif isinstance(event, Head):
            self.head = event
        else:
            self.finish = event

    def _keep(self, delta: Delta) -> None:
        for piece in delta.pieces:
            if piece.index == 0:  # feedback is about one answer: the first choice
                self.token_ids.extend(piece.token_ids)
                if self.keep == "text" and piece.text:
                    self.text.append(piece.text)

    def trajectory(self) -> Trajectory:
        request, head, finish = self.request, self.head, self.finish
        if finish is None and self.outcome == "complete":
            self.outcome = "cancelled"  # left early without an exception: the client had enough
        features, text = self.keep != "none", self.keep == "text"
        return Trajectory(
            request_id=request.id,
            tenant=request.principal.tenant,
            key_id=request.principal.key_id,
            user=request.principal.user,
            endpoint=request.endpoint,
            requested_model=request.requested_model or request.model,
            model=head.model if head else request.model,
            route=head.route if head and head.route else request.route,
            adapter=head.adapter if head else None,
            client_ids=request.client_ids,
            completion_id=finish.completion_id if finish else None,
            sampling=request.sampling,
            score=(finish.score if finish else None) or Score(),
            finish_reason=finish.reason if finish else None,
            usage=finish.usage if finish else None,
            embedding=request.embedding,
            learn=request.learn,
            no_capture=head.no_capture if head else "",
            outcome=self.outcome,
            started_at=request.received_at,
            ttft_s=self.ttft,
            duration_s=self.clock() - self.began,
            prompt_ids=head.prompt_ids if head and features else (),
            token_ids=tuple(self.token_ids),
            query=request.query if text else None,
            body=request.body if text else None,
            answer="".join(self.text) if text else None,
        )
