"""The backend: answers of the server pass as they are; requests are bound to their adapter on the way."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

from sona_stream.config.settings import Deployment, SonaSettings
from sona_stream.errors import HostAway, HostError, UpstreamError
from sona_stream.events import AdapterRef, Event, Head, Request
from sona_stream_adapters.openai.backend import OpenAIBackend, upstream_url

from .body import with_fields
from .host import VllmHost
from .link import HttpLink, NoPlugin
from .meeting import Meeting
from .options import INSTANCE, parse_options, with_control

__all__ = ["VllmBackend"]

_TRIES = 3


class VllmBackend(OpenAIBackend):
    """One deployment. `host` is there once the plug-in has answered; it is another one after another model came."""

    adaptable = True

    def __init__(self, deployment: Deployment, settings: SonaSettings) -> None:
        options = parse_options(deployment)
        deployment = with_control(deployment, options)
        super().__init__(deployment, settings)
        self._keeps_ids = settings.storage != "none"
        self._learns = settings.learning != "off"
        self._link = HttpLink(
            self.name, lambda path: upstream_url(deployment, path), self._rules.fixed, self.exchange
        )
        self._met = Meeting(self.name, self._link, fetch_hidden=options.fetch_hidden)
        self._meeting = asyncio.Lock()

    @property
    def host(self) -> VllmHost | None:
        """None until the plug-in has answered, and while it is not there or its hook is off."""
        return self._met.host

    @property
    def host_problem(self) -> str:
        """Why the server's hidden states are out of reach though it answers."""
        return self._met.problem

    async def probe(self) -> None:
        """Also looks whether the server is still the one that was met, and puts what it lacks."""
        await super().probe()
        await self._meet()
        if self.host is not None:
            await self.host.restore()

    @asynccontextmanager
    async def __call__(self, request: Request, /) -> AsyncIterator[AsyncIterator[Event]]:
        async with AsyncExitStack() as stack:
            events, adapter = await self._opened(stack, request)
            async with aclosing(_stamped(events, adapter)) as stamped:
                yield stamped

    async def _opened(
        self, stack: AsyncExitStack, request: Request
    ) -> tuple[AsyncIterator[Event], AdapterRef | None]:
        """Sends it; a server that was started again meanwhile is given its adapters first, then the request."""
        for _ in range(_TRIES):
            sent, adapter = await self._bound(request)
            try:
                return await stack.enter_async_context(super().__call__(sent)), adapter
            except UpstreamError as error:
                if not _is_new_instance(error):
                    raise
                last = error
                await self._meet()
        raise last

    async def _bound(self, request: Request) -> tuple[Request, AdapterRef | None]:
        host = self.host
        xargs: dict[str, Any] = {}
        adapter = None
        if host is not None:
            if request.adapter is not None and (bound := await host.bind(request.adapter)) is not None:
                xargs["sona"], adapter = bound
                if adapter.pinned:
                    xargs["sona_version"] = adapter.version
            xargs |= await host.bind_episodes(request.episodes)
            if self._learns and request.learn and _is_single(request):
                xargs["sona_rid"] = request.id
        body = with_fields(request.body, xargs, token_ids=self._keeps_ids and request.learn and host is not None)
        headers = request.headers
        if host is not None and xargs:
            headers = (*headers, (INSTANCE.encode(), host.instance.encode()))
        return dataclasses.replace(request, body=body, headers=headers), adapter

    async def _meet(self) -> None:
        """Who is there? Raises HostAway when the plug-in does not answer now."""
        async with self._meeting:
            try:
                self._met.meet(await self._link.json("GET", "info"))
            except HostAway:
                raise
            except HostError as error:
                self._met.note(str(error))
                if not isinstance(error, NoPlugin):
                    raise


def _is_single(request: Request) -> bool:
    """Whether there is one answer to one prompt: of several, which one is captured could not be told."""
    return request.sampling.n == 1 and (request.endpoint == "chat.completions" or request.prompt is not None)


def _is_new_instance(error: UpstreamError) -> bool:
    if error.status != 409:
        return False
    try:
        return bool(json.loads(error.body)["error"]["type"] == "instance_changed")
    except (ValueError, KeyError, TypeError):
        return False


async def _stamped(events: AsyncIterator[Event], adapter: AdapterRef | None) -> AsyncGenerator[Event, None]:
    """The adapter on the head."""
    async for event in events:
        yield dataclasses.replace(event, adapter=adapter) if isinstance(event, Head) else event
