"""The backend: answers of the server pass as they are; requests are bound to their adapter on the way."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

from sona_stream.config.settings import Deployment, SonaSettings
from sona_stream.errors import HostAway, HostError, UpstreamError
from sona_stream.events import AdapterRef, Delta, Event, Finish, Head, Headers, Request
from sona_stream_adapters.openai.backend import OpenAIBackend, upstream_url
from sona_stream_adapters.vllm_plugin.unserved import PASSED_BY

from .body import with_fields
from .hook_stats import hook_stats
from .host import VllmHost
from .link import HttpLink, NoPlugin
from .meeting import Meeting
from .options import HOOK, INSTANCE, parse_options, with_control

__all__ = ["VllmBackend"]

_log = logging.getLogger(__name__)

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
        self._stats: Mapping[str, float | str] = {}

    @property
    def host(self) -> VllmHost | None:
        """None until the plug-in has answered, and while it is not there or its hook is off."""
        return self._met.host

    @property
    def host_problem(self) -> str:
        """Why the server's hidden states are out of reach though it answers."""
        return self._met.problem

    def hook_stats(self) -> Mapping[str, float | str]:
        """See `HookReporter`."""
        return self._stats

    def take_unserved(self) -> Mapping[str, str]:
        """See `AnswerAuditor`."""
        return self._met.take_unserved()

    async def probe(self) -> None:
        """Also looks whether the server is still the one that was met, and puts what it lacks."""
        await super().probe()
        await self._meet()
        if self.host is not None:
            await self.host.restore()
        self._stats = await hook_stats(self._link) if self._met.known else {}

    @asynccontextmanager
    async def __call__(self, request: Request, /) -> AsyncIterator[AsyncIterator[Event]]:
        async with AsyncExitStack() as stack:
            events, adapter = await self._opened(stack, request)
            async with aclosing(self._stamped(events, adapter, request)) as stamped:
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
            if self._captures(request):
                xargs["sona_rid"] = request.id
        # Also while the hook is off: when it works again, what was answered meanwhile can be learned from.
        # Where a stop string may end it, they also tell how long it was.
        wants_ids = self._keeps_ids or (bool(request.sampling.stop) and self._captures(request))
        body = with_fields(request.body, xargs, token_ids=wants_ids and request.learn and self._met.known)
        headers = request.headers
        if host is not None and xargs:
            headers = (*headers, (INSTANCE.encode(), host.instance.encode()))
        return dataclasses.replace(request, body=body, headers=headers), adapter

    def _captures(self, request: Request) -> bool:
        """Whether there is one answer to one prompt: of several, which one is captured could not be told."""
        single = request.sampling.n == 1 and (request.endpoint == "chat.completions" or request.prompt is not None)
        return self._learns and request.learn and single

    def _answer_headers(self, headers: Headers) -> Headers:
        """Also what is meant for us alone; `_stamped` takes it out."""
        return (*super()._answer_headers(headers), *(pair for pair in headers if pair[0] == HOOK))

    async def _stamped(
        self, events: AsyncIterator[Event], adapter: AdapterRef | None, request: Request
    ) -> AsyncGenerator[Event, None]:
        """What served the answer, on its head: not the adapter when the hook is off, as the server tells there.
        What the engine knows of this answer decides whether the hook drew some of it. The host hears of its length.
        """
        mixed, tokens = False, 0
        async for event in events:
            if isinstance(event, Head):
                headers = tuple(pair for pair in event.headers if pair[0] != HOOK)
                problem = self._met.problem
                if told := dict(event.headers).get(HOOK, b"").decode("latin-1"):
                    await self._meet_again()
                    known = self._met.told(request.id)
                    mixed = not (known.startswith(PASSED_BY) if known else told.startswith("before:"))
                    adapter, problem = None, f"{self.name}: the hook switched itself off {told}"
                event = dataclasses.replace(event, headers=headers, adapter=adapter, no_capture=problem)
            elif isinstance(event, Delta):
                tokens += sum(len(one.token_ids) for one in event.pieces)
                event = _without_ids(event) if mixed else event
            elif self._captures(request):
                self._note_length(request, event, tokens)
            yield event

    def _note_length(self, request: Request, finish: Finish, tokens: int) -> None:
        """As the server counts it, else by the token ids that it told; unknown where there is neither, or an error.
        vLLM's front end finds a stop string in the text: the engine draws on until it hears of it.
        """
        if finish.usage is not None:
            tokens = finish.usage.completion_tokens
        if self.host is not None and tokens and finish.reason != "error":
            self.host.shown(request.id, tokens)

    async def _meet_again(self) -> None:
        """Before the next request; this one's answer does not depend on it."""
        try:
            await self._meet()
        except (HostAway, HostError) as error:
            _log.warning("%s", error)

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


def _is_new_instance(error: UpstreamError) -> bool:
    if error.status != 409:
        return False
    try:
        return bool(json.loads(error.body)["error"]["type"] == "instance_changed")
    except (ValueError, KeyError, TypeError):
        return False


def _without_ids(event: Delta) -> Delta:
    """Whose tokens the adapter drew cannot be told: as if they were not known."""
    return dataclasses.replace(event, pieces=tuple(dataclasses.replace(one, token_ids=()) for one in event.pieces))
