"""Adapt: names the adapter that the host shall apply to this request's hidden states."""

from __future__ import annotations

import dataclasses

from ..events import AdapterRef, Request
from ..protocols import AdapterResolver, EventStream, Handler, Middleware

__all__ = ["adapt"]


def adapt(resolver: AdapterResolver) -> Middleware:
    """Requests with tools or a JSON schema are left alone, as are those with `x-sona-adapt: off`."""

    def middleware(handler: Handler) -> Handler:
        def handle(request: Request) -> EventStream:
            adapter = _choose(resolver, request)
            return handler(request if adapter == request.adapter else dataclasses.replace(request, adapter=adapter))

        return handle

    return middleware


def _choose(resolver: AdapterResolver, request: Request) -> AdapterRef | None:
    if not request.adapt:
        return None
    if request.pinned is not None:
        # A model that stands in for the one asked for has not this adapter.
        return request.pinned if request.pinned.key.rsplit("/", 2)[0] == request.model else None
    return None if request.constrained else resolver.resolve(request)
