"""`/v1/chat/completions` and `/v1/completions` over scripted backends, without a socket."""

import asyncio
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_clients import Asked, ask, chat, chat_bytes, data_events, texts
from server_fakes import HEAD, FakeServices, Script, forever, spoken

from sona_stream.config.settings import SonaSettings
from sona_stream.errors import NotFound, NotReady, UpstreamError, UpstreamProtocolError, UpstreamTimeout
from sona_stream.events import AdapterRef, Delta, Finish, Head, Piece
from sona_stream.server import create_app

CHAT = "/v1/chat/completions"
UPSTREAM = (
    b': ping\r\n\r\ndata: {"id":"u1","choices":[{"index":0,"delta":{"content":"\xe4\xbd\xa0"}}],"x":1}\n\n'
    b'data:{"id":"u1","choices":[]}\n\ndata: [DONE]\n\n'
)


def raw(*chunks, headers=()):
    head = Head(model="m1", headers=headers)
    return [head, *(Delta(raw=chunk) for chunk in chunks), Finish(raw=b"")]


async def test_streams_pieces_as_events():
    app = create_app(FakeServices(*spoken("Hello", " world")))
    reply = await ask(app, "POST", CHAT, chat(stream_options={"include_usage": True}))
    events = data_events(reply.body)
    assert reply.status == 200
    assert reply.complete
    assert reply.headers[b"content-type"].startswith(b"text/event-stream")
    assert texts(reply.body) == "Hello world"
    assert events[-1] == b"[DONE]"
    assert json.loads(events[-2])["usage"]["total_tokens"] == 6
    assert json.loads(events[-2])["choices"] == []


async def test_answers_whole_when_not_streamed(services, app):
    reply = await ask(app, "POST", CHAT, chat(stream=False))
    body = reply.json()
    assert body["choices"][0]["message"]["content"] == "Hello world"
    assert body["usage"]["completion_tokens"] == 2
    assert int(reply.headers[b"content-length"]) == len(reply.body)
    assert services.pipeline.ended == ["complete"]


async def test_completions_endpoint():
    app = create_app(FakeServices(*spoken("a", "b")))
    body = {"model": "m1", "prompt": "x"}
    assert (await ask(app, "POST", "/v1/completions", body)).json()["choices"][0]["text"] == "ab"
    streamed = await ask(app, "POST", "/v1/completions", {**body, "stream": True})
    found = [json.loads(event) for event in data_events(streamed.body)[:-1]]
    assert "".join(choice["text"] for event in found for choice in event["choices"]) == "ab"


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, len(UPSTREAM)), max_size=8).map(sorted))
def test_upstream_bytes_pass_verbatim_however_they_are_cut(cuts):
    edges = [0, *cuts, len(UPSTREAM)]
    chunks = [UPSTREAM[a:b] for a, b in itertools.pairwise(edges)]

    async def main():
        app = create_app(FakeServices(*raw(*chunks, headers=((b"content-type", b"text/event-stream"),))))
        reply = await ask(app, "POST", CHAT, chat())
        assert reply.body == UPSTREAM
        assert reply.headers[b"content-type"] == b"text/event-stream"

    asyncio.run(main())


async def test_a_whole_upstream_body_passes_verbatim_with_its_headers():
    body = b'{ "id":"u","vendor": [1.0e5] }'
    headers = (
        (b"content-type", b"application/json; x=1"),
        (b"content-length", b"999"),
        (b"connection", b"keep-alive"),
        (b"transfer-encoding", b"chunked"),
        (b"set-cookie", b"a=b"),
        (b"x-request-id", b"up-1"),
        (b"x-ratelimit-remaining", b"3"),
        (b"x-sona-model", b"forged"),
    )
    reply = await ask(create_app(FakeServices(*raw(body, headers=headers))), "POST", CHAT, chat(stream=False))
    assert reply.body == body
    assert reply.headers[b"content-type"] == b"application/json; x=1"
    assert reply.headers[b"content-length"] == b"%d" % len(body)
    assert reply.headers[b"x-request-id"] == b"up-1"
    assert reply.headers[b"x-ratelimit-remaining"] == b"3"
    assert reply.headers[b"x-sona-model"] == b"m1"
    assert not {b"set-cookie", b"connection", b"transfer-encoding"} & set(reply.headers)


async def test_a_changed_body_is_encoded_under_our_own_content_type():
    steps = [
        Head(model="m1", headers=((b"content-type", b"application/json"), (b"content-encoding", b"gzip"))),
        Delta(pieces=(Piece(text="changed"),)),
        Finish(),
    ]
    reply = await ask(create_app(FakeServices(*steps)), "POST", CHAT, chat(stream=False))
    assert reply.json()["choices"][0]["message"]["content"] == "changed"
    assert b"content-encoding" not in reply.headers


async def test_every_answer_says_what_was_done(services, app):
    for stream in (True, False):
        reply = await ask(app, "POST", CHAT, chat(stream=stream))
        own = {name: value for name, value in reply.headers.items() if name.startswith(b"x-sona-")}
        assert own.pop(b"x-sona-request-id") == services.pipeline.requests[-1].id.encode()
        assert own == {
            b"x-sona-model": b"m1",
            b"x-sona-pattern": b"p7",
            b"x-sona-pattern-type": b"CodeGen",
            b"x-sona-reason": b"pattern",
            b"x-sona-propensity": b"0.25",
            b"x-sona-similarity": b"0.8750",
            b"x-sona-adapter": b"m1/default/CodeGen@3",
        }
        assert reply.headers[b"x-request-id"] == reply.headers[b"x-sona-request-id"]


async def test_header_values_are_always_printable_ascii():
    head = Head(model="mödel\r\nx: y")
    reply = await ask(create_app(FakeServices(head, Finish(raw=b""))), "POST", CHAT, chat())
    assert reply.headers[b"x-sona-model"] == b"m%C3%B6del%0D%0Ax: y"
    assert reply.headers[b"x-sona-adapter"] == b"none"


EARLY = [
    (NotFound("the model 'x' does not exist"), 404, "not_found"),
    (NotReady("loading"), 503, "not_ready"),
    (UpstreamTimeout("no first byte within 2 s", status=504), 504, "upstream_timeout"),
    (UpstreamError("odd", status=700), 502, "upstream_error"),
    (RuntimeError("secret path"), 500, "internal_error"),
]


@pytest.mark.parametrize(("error", "status", "code"), EARLY, ids=lambda x: getattr(x, "code", None))
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("before", [[], [HEAD]], ids=["at-once", "after-head"])
async def test_errors_before_the_first_content_keep_their_status(error, status, code, stream, before):
    reply = await ask(create_app(FakeServices(*before, error)), "POST", CHAT, chat(stream=stream))
    body = reply.json()["error"]
    assert (reply.status, body["code"]) == (status, code)
    assert set(body) == {"message", "type", "param", "code"}
    assert reply.headers[b"x-sona-request-id"]
    assert b"secret" not in reply.body


@pytest.mark.parametrize("stream", [True, False])
async def test_an_upstreams_error_passes_verbatim(stream):
    error = UpstreamError(
        "busy",
        status=429,
        headers=((b"content-type", b"application/json"), (b"retry-after", b"7"), (b"connection", b"close")),
        body=b'{"error": {"type":"rate_limit_error"} }',
    )
    reply = await ask(create_app(FakeServices(error)), "POST", CHAT, chat(stream=stream))
    assert (reply.status, reply.body) == (429, error.body)
    assert reply.headers[b"retry-after"] == b"7"
    assert b"connection" not in reply.headers


@pytest.mark.parametrize(
    "error", [UpstreamProtocolError("the upstream died"), RuntimeError("bug"), None], ids=["died", "bug", "no-end"]
)
@pytest.mark.parametrize("chunk", [b'data: {"a":1}\n\n', b'data: {"a":1}\n\ndata: {"cut'], ids=["whole", "cut"])
async def test_after_the_first_byte_an_error_is_an_event_and_no_clean_end(error, chunk):
    steps = [Head(model="m1"), Delta(raw=chunk), *([error] if error else [])]
    services = FakeServices(*steps)
    reply = await ask(create_app(services), "POST", CHAT, chat())
    assert reply.status == 200
    assert reply.complete
    assert reply.body.startswith(chunk)
    last = data_events(reply.body)[-1]
    assert json.loads(last)["error"]["message"]
    assert b"[DONE]" not in reply.body
    assert b"bug" not in reply.body


async def test_a_broken_body_that_is_not_streamed_has_a_status_of_its_own():
    steps = [HEAD, Delta(raw=b'{"half'), UpstreamProtocolError("the upstream died")]
    reply = await ask(create_app(FakeServices(*steps)), "POST", CHAT, chat(stream=False))
    assert reply.status == 502
    assert reply.json()["error"]["code"] == "upstream_protocol_error"


async def test_the_request_that_goes_down(services, app):
    headers = {
        "x-request-id": "mine-1",
        "authorization": "Bearer k",
        "cookie": "c",
        "x-api-key": "k",
        "x-trace": "t",
    }
    body = chat_bytes(metadata={"request_id": "mine-2"}, temperature=0.5, user="eve")
    await ask(app, "POST", CHAT, body, {**headers, "x-sona-learn": "off"})
    request = services.pipeline.requests[0]
    assert request.body is body or request.body == body
    assert (request.model, request.requested_model, request.query) == ("m1", "m1", "hi")
    assert request.client_ids == ("mine-1", "mine-2")
    assert request.sampling.temperature == 0.5
    kept = [(name.encode(), value.encode()) for name, value in headers.items() if name != "cookie"]
    assert list(request.headers) == kept, "without keys of our own, credentials are the upstream's"
    assert (request.adapt, request.learn, request.principal.user) == (True, False, None)


async def test_adaptation_is_switched_off_or_pinned_by_header(services, app):
    async def send(value, model="m1"):
        return await ask(app, "POST", CHAT, chat(model=model), {"x-sona-adapt": value})

    assert (await send("off")).status == 200
    assert services.pipeline.requests[-1].adapt is False
    assert (await send("m1/default/*@4")).status == 200
    assert services.pipeline.requests[-1].pinned == AdapterRef(key="m1/default/*", version=4, pinned=True)
    assert services.pinned == [AdapterRef(key="m1/default/*", version=4, pinned=True)]
    assert (await send("org/m1/default/CodeGen@1", model="org/m1")).status == 200
    seen = len(services.pipeline.requests)
    assert (await send("m1/default/*@9")).status == 404, "no such version"
    assert (await send("m1/other/*@1")).status == 404, "another tenant's"
    assert (await send("m1/default/*@1", model="sona/auto")).status == 400
    for wrong in ("yes", "m1/default/*", "m1/default/*@0", "m1/default/*@-1", "@1"):
        assert (await send(wrong)).status == 400, wrong
    assert (await ask(app, "POST", CHAT, chat(), {"x-sona-learn": "no"})).status == 400
    assert len(services.pipeline.requests) == seen


@pytest.mark.parametrize(
    ("steps", "stream", "phase"),
    [
        ([forever], True, "before_first_byte"),
        ([HEAD, forever], True, "before_first_byte"),
        ([HEAD, Delta(pieces=(Piece(text="a"),)), forever], True, "mid_stream"),
        ([HEAD, Delta(pieces=(Piece(text="a"),)), forever], False, "non_stream"),
    ],
    ids=["at-once", "after-head", "mid-stream", "non-stream"],
)
async def test_a_client_that_leaves_cancels_the_backend_in_every_phase(steps, stream, phase, caplog):
    services = FakeServices(*steps)
    asked = Asked(create_app(services), "POST", CHAT, chat_bytes(stream=stream))
    running = asyncio.create_task(asked.run())
    await services.pipeline.entered.wait()
    if phase == "mid_stream":
        await asked.wrote.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    asked.leave()
    await asyncio.wait_for(running, 1)  # returns: nothing is raised
    assert services.pipeline.ended == ["CancelledError"]
    counted = services.registry.get_sample_value("sona_upstream_cancelled_total", {"phase": phase})
    assert counted == 1
    assert services.registry.get_sample_value("sona_in_flight_requests") == 0
    assert not caplog.records


async def test_a_client_that_leaves_after_the_end_cancels_nothing():
    let_go = asyncio.Event()
    services = FakeServices(*spoken("a"))
    services.pipeline = Script(*spoken("a"), on_exit=let_go.wait)
    asked = Asked(create_app(services), "POST", CHAT, chat_bytes())
    running = asyncio.create_task(asked.run())
    await asked.wrote.wait()
    await asyncio.sleep(0.01)
    asked.leave()
    await asyncio.sleep(0.01)
    let_go.set()
    await running
    assert services.pipeline.ended == ["complete"]


async def test_the_end_is_told_only_when_the_pipeline_has_recorded_it():
    order = []
    services = FakeServices()

    async def recorded():
        await asyncio.sleep(0.01)
        order.append("recorded")

    services.pipeline = Script(*spoken("a"), on_exit=recorded)
    asked = Asked(create_app(services), "POST", CHAT, chat_bytes())
    send = asked.send

    async def noting(message):
        if b"[DONE]" in message.get("body", b""):
            order.append("told")
        await send(message)

    asked.send = noting
    await asked.run()
    assert order == ["recorded", "told"]


async def test_an_error_after_the_end_costs_no_answer(caplog):
    async def broken():
        raise RuntimeError("the record failed")

    services = FakeServices()
    services.pipeline = Script(*spoken("a"), on_exit=broken)
    reply = await ask(create_app(services), "POST", CHAT, chat())
    assert texts(reply.body) == "a"
    assert data_events(reply.body)[-1] == b"[DONE]"
    assert "failed to end" in caplog.text


@pytest.mark.parametrize("steps", [[forever], [HEAD, Delta(pieces=(Piece(text="a"),)), forever]])
async def test_a_cancellation_from_outside_passes_and_the_client_is_told(steps):
    services = FakeServices(*steps)
    asked = Asked(create_app(services), "POST", CHAT, chat_bytes())
    running = asyncio.create_task(asked.run())
    await services.pipeline.entered.wait()
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert asked.reply.complete
    assert asked.reply.status == (503 if len(steps) == 1 else 200)
    assert b"shutting down" in asked.reply.body


async def test_silence_is_filled_with_comments_on_demand_and_between_events_only():
    def wait():
        return asyncio.sleep(0.055)

    chunks = [b'data: {"a":1}\n\n', b'data: {"b"', b":2}\n\n"]
    steps = [HEAD, Delta(raw=chunks[0]), wait, Delta(raw=chunks[1]), wait, Delta(raw=chunks[2]), Finish(raw=b"")]
    plain = await ask(create_app(FakeServices(*steps)), "POST", CHAT, chat())
    assert plain.body == b"".join(chunks)
    sona = SonaSettings(keep_alive_s=0.02)
    filled = (await ask(create_app(FakeServices(*steps, sona=sona)), "POST", CHAT, chat())).body
    assert b": ping\n\n" in filled
    assert filled.replace(b": ping\n\n", b"") == plain.body
    assert chunks[1] + chunks[2] in filled


async def test_a_client_that_leaves_before_its_request_is_whole_gets_nothing(services, app):
    asked = Asked(app, "POST", CHAT)
    asked.inbox = asyncio.Queue()
    asked.inbox.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
    asked.leave()
    assert (await asked.run()).status is None
    assert not services.pipeline.requests


async def test_a_slow_reader_stops_the_backend_from_running_ahead():
    made = []

    def note():
        made.append(1)

    steps = [HEAD]
    for _ in range(50):
        steps += [note, Delta(pieces=(Piece(text="x"),))]
    asked = Asked(create_app(FakeServices(*steps, Finish())), "POST", CHAT, chat_bytes())
    gate, send = asyncio.Semaphore(3), asked.send

    async def slow(message):
        await gate.acquire()
        await send(message)

    asked.send = slow
    running = asyncio.create_task(asked.run())
    await asyncio.sleep(0.02)
    assert len(made) <= 4
    for _ in range(60):
        gate.release()
    assert texts((await running).body) == "x" * 50
