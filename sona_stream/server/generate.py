"""`/v1/chat/completions` and `/v1/completions`: the hot path."""

from __future__ import annotations

import asyncio
import logging

from ..errors import SonaError, UpstreamProtocolError
from ..events import Delta, Endpoint, Event, Finish, Head, Request
from ..wire import PING, BodyEncoder, StreamEncoder, decode_request, encode_error_event
from .auth import asserted_user
from .disconnect import ClientWatch
from .headers import answer_headers, for_upstream, forwarded
from .incoming import Call, read_body
from .instructions import parse_adapt, parse_learn
from .metrics import Timing
from .responses import JSON, Response, error_response, send_response
from .stopping import Stopping, last_words

__all__ = ["chat_completions", "completions"]

_log = logging.getLogger(__name__)

_EVENT_STREAM = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


async def chat_completions(call: Call) -> None:
    """`POST /v1/chat/completions`."""
    await _generate(call, "chat.completions")


async def completions(call: Call) -> None:
    """`POST /v1/completions`."""
    await _generate(call, "completions")


async def _generate(call: Call, endpoint: Endpoint) -> None:
    request = await _request(call, endpoint)
    answer: _Answer = _Stream(call, request) if request.stream else _Body(call, request)
    call.app.begin(call.id, request.principal, request.client_ids)
    try:
        with ClientWatch(call.receive) as watch:
            await answer.run(watch)
    finally:
        call.app.end(call.id)
    if watch.left:
        answer.client_left()


async def _request(call: Call, endpoint: Endpoint) -> Request:
    body = await read_body(call)
    decoded = decode_request(endpoint, body)
    settings = call.app.services.settings.sona
    principal = asserted_user(call.principal, call.headers, settings.user_header, decoded.user)
    adapt, pinned = parse_adapt(call.headers, decoded.model, principal)
    sent_id = call.headers.get(b"x-request-id", b"").decode("utf-8", "replace")[:256]
    return Request(
        id=call.id,
        endpoint=endpoint,
        model=decoded.model,
        requested_model=decoded.model,
        body=body,
        messages=decoded.messages,
        prompt=decoded.prompt,
        query=decoded.query,
        stream=decoded.stream,
        include_usage=decoded.include_usage,
        sampling=decoded.sampling,
        objections=decoded.objections,
        constrained=decoded.constrained,
        principal=principal,
        headers=for_upstream(call.raw_headers, keyed=bool(settings.keys)),
        client_ids=(sent_id, *decoded.client_ids) if sent_id else decoded.client_ids,
        adapt=adapt,
        pinned=pinned,
        learn=parse_learn(call.headers),
        received_at=call.received_at,
    )


class _Answer:
    """Runs the pipeline for one request and tells the client. Subclasses write."""

    phase = "before_first_byte"

    def __init__(self, call: Call, request: Request) -> None:
        self.call, self.request = call, request
        self.head: Head | None = None
        self.finish: Finish | None = None
        self.completion_id: str | None = None
        self.started = False
        self.timing = Timing(call.began)

    async def run(self, watch: ClientWatch) -> None:
        """Every way out has told the client, or has no client left to tell."""
        self.call.told = True
        try:
            await self._pump(watch)
        except asyncio.CancelledError:
            if not watch.left:
                await self._cut_off()
            raise
        except Exception as error:
            if watch.left:
                _log.debug(
                    "request %s ended with an error after its client had left", self.request.id, exc_info=error
                )
                return
            watch.answered()
            if self.finish is None:
                await self._fail(error)
                return
            _log.exception("after its answer was complete, request %s failed to end", self.request.id)
        if self.finish is None:
            watch.answered()
            await self._fail(UpstreamProtocolError("the backend's answer stopped without its end"))
            return
        await self.complete(self.finish)
        self._measure("")

    async def _pump(self, watch: ClientWatch) -> None:
        services, request = self.call.app.services, self.request
        if request.pinned is not None:
            await services.pin(request.pinned)
        async with services.pipeline(request) as events:
            async for event in events:
                await self._take(event, watch)

    async def _take(self, event: Event, watch: ClientWatch) -> None:
        if isinstance(event, Delta):
            self.timing.chunk()
            if event.completion_id != self.completion_id:
                self._call_it(event.completion_id)
            await self.delta(event, self.head or self._opened(Head(model=self.request.model)))
        elif isinstance(event, Head):
            self._opened(event)
        else:
            self.finish = event
            watch.answered()

    def _call_it(self, completion_id: str | None) -> None:
        """The client knows it by this name from now on, and may judge it before its end is recorded."""
        self.completion_id = completion_id
        if completion_id is not None:
            self.call.app.answering.name(self.request.id, completion_id)

    def _opened(self, head: Head) -> Head:
        self.head = head
        if head.route is not None:
            self.call.app.metrics.decided(head.route)
        return head

    async def delta(self, delta: Delta, head: Head) -> None:
        raise NotImplementedError

    async def complete(self, finish: Finish) -> None:
        raise NotImplementedError

    async def _fail(self, error: Exception) -> None:
        self._measure(error.code if isinstance(error, SonaError) else "internal_error")
        if not self.started:
            own = answer_headers(self.request.id, self.head)
            await send_response(self.call.send, error_response(error), own, head=False)
            return
        known = error if isinstance(error, SonaError) else SonaError("the server failed to go on with this answer")
        _log.warning("request %s broke off", self.request.id, exc_info=None if known is error else error)
        await self.break_off(known)

    async def break_off(self, error: SonaError) -> None:
        raise NotImplementedError

    async def _cut_off(self) -> None:
        await last_words(self._fail(Stopping()) if self.finish is None else self.complete(self.finish))

    def client_left(self) -> None:
        """Count what was given up."""
        self.call.app.metrics.left(self.phase)
        self._measure("cancelled")

    def _measure(self, error: str) -> None:
        self.call.app.metrics.answered(
            self.request.endpoint, self.timing, self.head, None if error else self.finish, error
        )

    def _own_headers(self, head: Head, *, verbatim: bool) -> list[tuple[bytes, bytes]]:
        headers = [*forwarded(head.headers, verbatim=verbatim), *answer_headers(self.request.id, head)]
        if all(name != b"x-request-id" for name, _ in headers):
            headers.append((b"x-request-id", self.request.id.encode()))
        return headers


class _Stream(_Answer):
    """Server-sent events; the headers wait for the first `Delta`, so that an early error keeps its status."""

    _encoder: StreamEncoder | None = None
    _clean = True
    """Whether what was written ends at an event's boundary."""

    _silent = False
    _pinging: asyncio.Task[None] | None = None

    async def run(self, watch: ClientWatch) -> None:
        """As `_Answer.run`; with `sona.keep_alive_s`, silence is filled with comments."""
        try:
            await super().run(watch)
        finally:
            self._stop_pinging()

    async def delta(self, delta: Delta, head: Head) -> None:
        if not self.started:
            await self._start(head, verbatim=delta.raw is not None)
        self._silent = False
        chunk = delta.raw if delta.raw is not None else self._encoding(head).delta(delta)
        if chunk:
            self._clean = chunk.endswith((b"\n\n", b"\r\n\r\n"))
            await self.call.send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def complete(self, finish: Finish) -> None:
        head = self.head or self._opened(Head(model=self.request.model))
        if not self.started:
            await self._start(head, verbatim=finish.raw is not None)
        self._stop_pinging()
        end = finish.raw if finish.raw is not None else self._encoding(head).finish(finish)
        await self.call.send({"type": "http.response.body", "body": end})

    async def break_off(self, error: SonaError) -> None:
        self._stop_pinging()
        ending = b"" if self._clean else b"\n\n"
        await self.call.send({"type": "http.response.body", "body": ending + encode_error_event(error)})

    def _encoding(self, head: Head) -> StreamEncoder:
        """One encoder an answer; none for bytes that pass as they are."""
        if self._encoder is None:
            self._encoder = StreamEncoder(self.request, head)
        return self._encoder

    async def _start(self, head: Head, *, verbatim: bool) -> None:
        headers = self._own_headers(head, verbatim=verbatim)
        if not any(name == b"content-type" for name, _ in headers):
            headers.extend(_EVENT_STREAM)
        await self.call.send({"type": "http.response.start", "status": head.status, "headers": headers})
        self.started = True
        self.phase = "mid_stream"
        if (pause := self.call.app.services.settings.sona.keep_alive_s) is not None:
            self._pinging = asyncio.get_running_loop().create_task(self._ping(pause))

    def _stop_pinging(self) -> None:
        """Before the last message: nothing may follow that."""
        if self._pinging is not None:
            self._pinging.cancel()

    async def _ping(self, pause: float) -> None:
        while self.finish is None:
            self._silent = True
            await asyncio.sleep(pause)
            if self._silent and self._clean and self.finish is None:  # between events only
                await self.call.send({"type": "http.response.body", "body": PING, "more_body": True})


class _Body(_Answer):
    """One JSON body, sent when it is whole: whatever goes wrong before still has its own status."""

    phase = "non_stream"

    def __init__(self, call: Call, request: Request) -> None:
        super().__init__(call, request)
        self._encoder: BodyEncoder | None = None
        self._verbatim = True

    async def delta(self, delta: Delta, head: Head) -> None:
        if self._encoder is None:
            self._encoder = BodyEncoder(self.request, head)
        self._verbatim = self._verbatim and delta.raw is not None
        self._encoder.delta(delta)

    async def complete(self, finish: Finish) -> None:
        head = self.head or self._opened(Head(model=self.request.model))
        encoder = self._encoder or BodyEncoder(self.request, head)
        headers = self._own_headers(head, verbatim=self._verbatim and self._encoder is not None)
        if not any(name == b"content-type" for name, _ in headers):
            headers.append(JSON)
        response = Response(head.status, encoder.finish(finish), ())
        await send_response(self.call.send, response, headers, head=False)

    async def break_off(self, error: SonaError) -> None:
        raise RuntimeError("a body that is not streamed is sent whole") from error
