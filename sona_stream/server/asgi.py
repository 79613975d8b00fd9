"""The ASGI application (https://asgi.readthedocs.io, HTTP and lifespan): dispatch, errors, lifetimes."""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import NotFound, SonaError
from ..events import Principal
from ..wire import error_body
from .answering import Answering
from .auth import Authenticator
from .headers import answer_headers
from .incoming import Call, ClientLeft, open_call
from .metrics import Metrics
from .responses import JSON, Receive, Response, Send, error_response, send_response
from .routes import PREFIXES, ROUTES, Route
from .services import Services
from .stopping import Stopping, last_words

__all__ = ["App", "create_app"]

_log = logging.getLogger(__name__)

_DRAIN_S = 5.0
"""How long requests that were cancelled by the server's stop may take to clean up."""


def create_app(services: Services) -> App:
    """The application for `services`. Its lifespan starts and stops them."""
    return App(services)


class App:
    """An ASGI callable; one for a process."""

    def __init__(self, services: Services) -> None:
        settings = services.settings
        self.services = services
        self.model_names = tuple(dict.fromkeys(model.model_name for model in settings.models))
        self.metrics = Metrics(services.registry, self.model_names)
        self.max_body = settings.sona.max_body_mb << 20
        self.created = int(time.time())
        self.startup_error: BaseException | None = None
        self._authenticator = Authenticator(settings.sona)
        self.answering = Answering()
        self._idle = asyncio.Event()
        self._idle.set()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """ASGI 3."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            raise NotImplementedError(f"no {scope['type']} here")

    def begin(self, request_id: str, principal: Principal | None = None, names: Iterable[str] = ()) -> None:
        """The answering of a request begins; `end` belongs in a ``finally``. ``principal``: who may judge it;
        ``names``: the client's own for it.
        """
        self.answering.begin(request_id, principal, names)
        self._idle.clear()
        self.metrics.in_flight.inc()

    def end(self, request_id: str) -> None:
        """It has ended, in whatever way."""
        self.answering.end(request_id)
        if not self.answering:
            self._idle.set()
        self.metrics.in_flight.dec()

    async def _http(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        call = open_call(self, scope, receive, send)
        try:
            response = await self._answer(call, scope["path"], scope["method"])
        except ClientLeft:
            return
        except asyncio.CancelledError:
            if not call.told:
                own = answer_headers(call.id, None)
                await last_words(send_response(send, error_response(Stopping()), own, head=call.head_only))
            raise
        except Exception as error:
            response = error_response(error)
        if response is not None:
            own = [] if b"x-sona-request-id" in dict(response.headers) else answer_headers(call.id, None)
            await send_response(send, response, own, head=call.head_only)

    async def _answer(self, call: Call, path: str, method: str) -> Response | None:
        route, call.argument = _find(path)
        wanted = "GET" if method == "HEAD" else method
        if wanted not in route:
            return _not_allowed(route, method)
        endpoint, role = route[wanted]
        if role is not None:
            call.principal = self._authenticator.principal(call.headers, role)
        return await endpoint(call)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        try:
            await self.services.startup()
        except Exception as error:
            self.startup_error = error
            # An error of ours is told by whoever started the server; anything else needs its traceback.
            if not isinstance(error, SonaError):
                _log.exception("the start failed")
            await send({"type": "lifespan.startup.failed", "message": ""})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown
        await self._drained()
        try:
            await self.services.shutdown()
        except Exception as error:
            _log.exception("the shutdown failed")
            await send({"type": "lifespan.shutdown.failed", "message": str(error)})
            return
        await send({"type": "lifespan.shutdown.complete"})

    async def _drained(self) -> None:
        try:
            await asyncio.wait_for(self._idle.wait(), _DRAIN_S)
        except TimeoutError:
            _log.warning("%d requests did not end in time", len(self.answering))


def _find(path: str) -> tuple[Route, str]:
    """(methods of the path, the rest of the path behind a prefix route)."""
    if path in ROUTES:
        return ROUTES[path], ""
    for prefix, route in PREFIXES.items():
        if path.startswith(prefix) and len(path) > len(prefix):
            return route, path[len(prefix) :]
    shown = path[:200]
    near = [f"/v1{path}"] if f"/v1{path}" in ROUTES else difflib.get_close_matches(shown, ROUTES, n=1, cutoff=0.8)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise NotFound(f"there is nothing at {shown}{hint}")


def _not_allowed(route: Route, method: str) -> Response:
    allowed = sorted({*route, *(["HEAD"] if "GET" in route else [])})
    message = f"{method[:20]} is not allowed here, only {', '.join(allowed)}"
    body = error_body(message, status=405, code="method_not_allowed")
    return Response(405, body, (JSON, (b"allow", ", ".join(allowed).encode())))
