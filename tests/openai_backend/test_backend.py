"""The adapter against a real upstream: bytes, headers, errors, ends, cancellation."""

import asyncio
import contextlib
import itertools
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_upstream import chunked, serving, sized

from sona_stream.config.settings import Deployment, KeySettings, SonaSettings, TimeoutSettings
from sona_stream.errors import (
    ConfigError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from sona_stream.events import Delta, Finish, Head, Piece, Request, Usage
from sona_stream.protocols import Backend
from sona_stream_adapters.openai import answer, create_backend

SSE = ("content-type: text/event-stream; charset=utf-8", "x-request-id: up-1")
DONE = b"data: [DONE]\n\n"
BODY = b'{"model": "m",  "messages": [], "stream": true, "vendor": {"model": "m"}}'


def event(content=None, reason=None, **fields):
    choice = {"index": 0, "delta": {} if content is None else {"content": content}, "finish_reason": reason}
    return (
        b"data: " + json.dumps({"id": "c1", "choices": [choice], **fields}, ensure_ascii=False).encode() + b"\n\n"
    )


ROLE = b'data: {"id":"c1","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
ERROR = b'{"error": {"message": "engine died", "code": 503}}'
REFUSED = b'{"error": {"message": "no"}}'
STREAM = [b": ping\n\n", ROLE, event("你好"), event("🙂"), event(None, "stop", x_vendor={"a": 1}), DONE]


def deployment(url, **fields):
    return Deployment(
        **{"model_name": "pub", "provider": "openai", "upstream_model": "up", "api_base": url, **fields}
    )


@contextlib.asynccontextmanager
async def backed(script, *, sona=None, via="transport", **fields):
    """(backend, upstream); ``via="httpx"`` takes the path of upstreams that need it."""
    async with (
        serving(script) as upstream,
        create_backend(deployment(upstream.url, **fields), sona or SonaSettings()) as one,
    ):
        if via == "httpx":
            client, one._client = one._client, None
            await client.aclose()
        yield one, upstream


def asked(body=BODY, **fields):
    return Request(**{"id": "r", "endpoint": "chat.completions", "model": "pub", "body": body, **fields})


async def collect(backend, request=None):
    async with backend(request or asked()) as events:
        return [one async for one in events]


def raw_of(events):
    return b"".join(one.raw for one in events if isinstance(one, Delta))


def pieces_of(events):
    return [piece for one in events if isinstance(one, Delta) for piece in one.pieces]


def replying(*parts, then=None):
    async def script(asked, wire):
        await wire.send(*parts)
        return then

    return script


async def tell_when_gone(wire, gone):
    if await wire.gone(60) is not None:
        gone.set()


async def leave(task, gone):
    """At once: long before any limit of the adapter's would close the connection."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    async with asyncio.timeout(2):
        await gone.wait()


both_ways = pytest.mark.parametrize("via", ["transport", "httpx"])


@both_ways
async def test_a_stream_passes_verbatim_with_its_pieces_beside(via):
    async with backed(replying(chunked(*STREAM, headers=SSE)), via=via) as (backend, upstream):
        assert isinstance(backend, Backend)
        events = await collect(backend)
        assert events[0] == Head(
            model="pub",
            headers=((b"content-type", b"text/event-stream; charset=utf-8"), (b"x-request-id", b"up-1")),
        )
        assert raw_of(events) == b"".join(STREAM)
        assert [piece.text for piece in pieces_of(events)] == ["你好", "🙂", ""]
        assert events[-1] == Finish(reason="stop", completion_id="c1", raw=b"")
        assert upstream.asked[0].target == "/v1/chat/completions"
        assert upstream.asked[0].body == BODY.replace(b'"model": "m",  ', b'"model": "up",  ')


async def test_the_body_is_untouched_when_the_name_is_right_already():
    async with backed(replying(chunked(*STREAM, headers=SSE)), upstream_model="m") as (backend, upstream):
        await collect(backend)
        assert upstream.asked[0].body == BODY
        assert b"stream_options" not in upstream.asked[0].body


@both_ways
async def test_a_body_that_is_not_streamed(via):
    told = {
        "id": "c9",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}},
    }
    body = json.dumps(told, indent=2).encode()
    async with backed(replying(sized(body, headers=("content-type: application/json",))), via=via) as (backend, _):
        events = await collect(backend, asked(endpoint="completions"))
        assert events == [
            Head(model="pub", headers=((b"content-type", b"application/json"),)),
            Delta(raw=body, pieces=(Piece(text="hi", finish_reason="length"),)),
            Finish(reason="length", usage=Usage(prompt_tokens=3, completion_tokens=1), completion_id="c9", raw=b""),
        ]


@given(cuts=st.lists(st.integers(1, 800), max_size=12), crlf=st.booleans())
@settings(max_examples=25, deadline=None)
def test_any_cut_gives_the_same_bytes_and_pieces(cuts, crlf):
    stream = b"".join(STREAM)
    if crlf:
        stream = stream.replace(b"\n", b"\r\n").replace(b"data: ", b"data:")
    edges = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})

    async def script(asked, wire):
        await wire.send(chunked(headers=SSE, end=False))
        for start, end in itertools.pairwise(edges):
            await wire.send(b"%x\r\n%s\r\n" % (end - start, stream[start:end]))
            await asyncio.sleep(0)
        await wire.send(b"0\r\n\r\n")

    async def run():
        async with backed(script) as (backend, _):
            events = await collect(backend)
            assert raw_of(events) == stream
            assert "".join(piece.text for piece in pieces_of(events)) == "你好🙂"
            assert events[-1].reason == "stop"
            assert all(
                one.raw.endswith((b"\n\n", b"\r\n\r\n", b"\r\n\r")) or one.raw == b"\n"
                for one in events
                if isinstance(one, Delta)
            )

    asyncio.run(run())


# --- headers


async def test_headers_up():
    sent = (
        (b"authorization", b"Bearer sona-secret"),
        (b"x-api-key", b"sona-secret"),
        (b"cookie", b"session=1"),
        (b"x-internal-token", b"t"),
        (b"connection", b"keep-alive"),
        (b"accept-encoding", b"gzip, br"),
        (b"content-length", b"999"),
        (b"x-request-id", b"mine"),
        (b"openai-beta", b"x"),
        (b"traceparent", b"00-1"),
    )
    keys = SonaSettings(keys=(KeySettings(key="sha256:00"),))
    script = replying(chunked(*STREAM, headers=SSE))

    async def seen(sona, **fields):
        async with backed(script, sona=sona, **fields) as (backend, upstream):
            await collect(backend, asked(headers=sent))
            headers = upstream.asked[0].headers
            assert headers.pop("host") == upstream.url[7:]
            assert headers.pop("content-length") == str(len(upstream.asked[0].body))
            return headers

    common = {
        "content-type": "application/json",
        "accept-encoding": "identity",
        "x-request-id": "mine",
        "openai-beta": "x",
        "traceparent": "00-1",
    }
    assert await seen(keys) == common
    assert await seen(keys, api_key="sk-up") == {**common, "authorization": "Bearer sk-up"}
    own = {"authorization": "Bearer sona-secret", "x-api-key": "sona-secret"}
    assert await seen(SonaSettings()) == {**common, **own}
    assert (await seen(SonaSettings(), api_key="sk-up"))["authorization"] == "Bearer sk-up"
    extra = {"extra_headers": {"X-Team": "a", "openai-beta": "ours"}, "forward_headers": ["X-Internal-Token"]}
    assert await seen(keys, params=extra) == {
        **common,
        "x-team": "a",
        "openai-beta": "ours",
        "x-internal-token": "t",
    }


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"api_base": "localhost:8000"}, "api_base"),
        ({"api_base": "ftp://x"}, "api_base"),
        ({"api_base": "http://user:word@h/v1"}, "password"),
        ({"api_base": "http://h:99999/v1"}, "[Pp]ort"),
        ({"api_base": "http://h /v1"}, "space"),
        ({"api_key": "a\r\nx: y"}, "api_key"),
        ({"params": {"extra_headers": {"x": "a\nb"}}}, "extra_headers"),
        ({"params": {"extra_headers": {"Host": "a"}}}, "extra_headers"),
        ({"params": {"extra_headers": ["x"]}}, "extra_headers"),
        ({"params": {"forward_headers": "x"}}, "forward_headers"),
        ({"params": {"max_connections": "ten"}}, "max_connections"),
        ({"params": {"max_connections": 0}}, "max_connections"),
        ({"params": {"max_connections": True}}, "max_connections"),
        ({"params": {"forward_headers": ["Authorization"]}}, "sona.keys"),
        ({"ssl_verify": "/no/such.pem"}, r"ssl_verify.*/no/such\.pem"),
        ({"ssl_verify": __file__}, "ssl_verify"),
        ({"client_cert": "/no/such.pem"}, "client_cert"),
        ({"client_cert": (__file__, __file__)}, "client_cert"),
        ({"proxy": "10.0.0.1:3128"}, "proxy must be an address like http://host:3128"),
        ({"proxy": "localhost:3128"}, "proxy"),
        ({"proxy": "http://"}, "proxy"),
        ({"proxy": "http://h:99999"}, "proxy"),
        ({"proxy": "ftp://h:21"}, "proxy"),
    ],
)
def test_bad_deployments_are_named(fields, says):
    sona = SonaSettings(keys=(KeySettings(key="sha256:00"),))
    with pytest.raises(ConfigError, match=says) as caught:
        create_backend(deployment("http://a", **fields), sona)
    assert "'pub'" in str(caught.value)


async def test_a_limit_from_the_environment_is_a_number():
    async with backed(replying(sized(b"{}")), params={"max_connections": "2"}) as (backend, _):
        assert [type(event) for event in await collect(backend)] == [Head, Delta, Finish]


async def test_headers_down():
    headers = (
        *SSE,
        "connection: keep-alive, x-hop",
        "x-hop: 1",
        "keep-alive: timeout=5",
        "set-cookie: a=b",
        "x-sona-adapter: forged",
        "x-ratelimit-remaining-requests: 9",
        "x-vendor: v",
    )
    async with backed(replying(chunked(*STREAM, headers=headers))) as (backend, _):
        head, *_ = await collect(backend)
        assert {name for name, _ in head.headers} == {
            b"content-type",
            b"x-request-id",
            b"x-ratelimit-remaining-requests",
            b"x-vendor",
        }


@pytest.mark.parametrize(
    ("base", "target"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/openai/v2/", "/openai/v2/chat/completions"),
        ("/x?api-version=1", "/x/chat/completions?api-version=1"),
    ],
)
async def test_where_requests_go(base, target):
    async with serving(replying(chunked(*STREAM, headers=SSE))) as upstream:
        async with create_backend(deployment(upstream.url + base), SonaSettings()) as backend:
            await collect(backend)
        assert upstream.asked[0].target == target


# --- refusals


@both_ways
@pytest.mark.parametrize(
    ("status", "retryable"),
    [
        (400, False),
        (401, False),
        (404, False),
        (408, True),
        (409, True),
        (422, False),
        (429, True),
        (500, True),
        (503, True),
    ],
)
async def test_a_refusal_keeps_status_headers_and_body(status, retryable, via):
    body = b'{"error": {"message": "secret prompt", "code": "x"}}'
    answered = sized(body, status=f"{status} No", headers=("retry-after: 7", "x-request-id: up-1"))
    async with backed(replying(answered), via=via) as (backend, upstream):
        with pytest.raises(UpstreamError) as caught:
            await collect(backend)
        error = caught.value
        assert (error.status, error.body, error.retryable) == (status, body, retryable)
        assert error.headers == ((b"retry-after", b"7"), (b"x-request-id", b"up-1"))
        assert "secret" not in str(error)
        assert len(upstream.asked) == 1


async def test_our_own_bad_key_is_not_the_clients_fault():
    async with backed(replying(sized(b"{}", status="401 No")), api_key="sk") as (backend, _):
        with pytest.raises(UpstreamError) as caught:
            await collect(backend)
        assert caught.value.retryable
        assert (caught.value.status, caught.value.body) == (502, b""), "a 401 would speak of the client's key"


async def test_whose_account_it_is_is_not_the_clients_to_say():
    sent = (
        (b"openai-organization", b"org-b"),
        (b"openai-project", b"p-b"),
        (b"idempotency-key", b"1"),
        (b"openai-beta", b"x"),
    )
    script = replying(chunked(*STREAM, headers=SSE))

    async def seen(sona=None, **fields):
        async with backed(script, sona=sona, **fields) as (backend, upstream):
            await collect(backend, asked(headers=sent))
            return {name for name in upstream.asked[0].headers if name.startswith(("openai", "idem"))}

    everything = {name.decode() for name, _ in sent}
    assert await seen() == everything
    assert await seen(api_key="sk") == {"openai-beta", "idempotency-key"}
    keys = SonaSettings(keys=(KeySettings(key="sha256:00"),))  # two tenants may choose the same idempotency key
    assert await seen(keys, api_key="sk") == {"openai-beta"}
    chosen = {"forward_headers": ["OpenAI-Project", "Idempotency-Key"]}
    assert await seen(keys, api_key="sk", params=chosen) == everything - {"openai-organization"}


async def test_redirects_are_not_followed():
    async with backed(replying(sized(b"", status="307 Go", headers=("location: http://else",)))) as (
        backend,
        upstream,
    ):
        with pytest.raises(UpstreamError) as caught:
            await collect(backend)
        assert (caught.value.status, len(upstream.asked)) == (502, 1)


@both_ways
@pytest.mark.parametrize("before", [b"", b": ping\n\n", ROLE, b": ping\n\n" + ROLE])
async def test_an_error_event_before_any_content_is_a_refusal(before, via):
    async def script(asked, wire):
        await wire.send(chunked(headers=SSE, end=False))
        for part in (before, b"data: " + ERROR + b"\n\n", DONE):
            if part:
                await wire.send(b"%x\r\n%s\r\n" % (len(part), part))
                await asyncio.sleep(0.01)
        await wire.send(b"0\r\n\r\n")

    async with backed(script, via=via) as (backend, _):
        with pytest.raises(UpstreamError) as caught:
            await collect(backend)
        assert (caught.value.status, caught.value.body, caught.value.retryable) == (503, ERROR, True)
        assert (b"content-type", b"application/json") in caught.value.headers


async def test_an_error_event_together_with_done_is_a_refusal():
    async with backed(replying(chunked(b"data: " + ERROR + b"\n\n" + DONE, headers=SSE))) as (backend, _):
        with pytest.raises(UpstreamError) as caught:
            await collect(backend)
        assert caught.value.body == ERROR


async def test_an_early_error_that_is_the_clients_own_is_not_retried():
    bad = b'{"error": {"message": "too long", "code": 400}}'
    async with backed(replying(chunked(b"data: " + bad + b"\n\n", headers=SSE))) as (backend, _):
        with pytest.raises(UpstreamError) as caught:
            await collect(backend)
        assert (caught.value.status, caught.value.retryable) == (400, False)
    async with backed(replying(sized(bad, headers=("content-type: application/json",)))) as (backend, _):
        with pytest.raises(UpstreamError) as caught:
            await collect(backend)
        assert (caught.value.status, caught.value.body) == (400, bad)


async def test_an_error_event_after_content_passes():
    parts = [event("a"), b"data: " + ERROR + b"\n\n", DONE]
    async with backed(replying(chunked(*parts, headers=SSE))) as (backend, _):
        events = await collect(backend)
        assert raw_of(events) == b"".join(parts)
        assert events[-1].reason == "error"


@both_ways
async def test_comments_and_an_empty_first_chunk_are_not_held_for_long(monkeypatch, via):
    monkeypatch.setattr(answer, "HOLD_S", 0.05)
    held, passed = b": ping\n\n" + ROLE, asyncio.Event()

    async def script(asked, wire):
        await wire.send(chunked(held, headers=SSE, end=False))
        await passed.wait()  # nothing comes that would end the holding
        await wire.send(*(b"%x\r\n%s\r\n" % (len(part), part) for part in STREAM[2:]), b"0\r\n\r\n")

    async with backed(script, via=via) as (backend, _):
        events = []
        async with asyncio.timeout(20), backend(asked()) as stream:
            async for one in stream:
                events.append(one)
                if isinstance(one, Delta):
                    passed.set()
        assert isinstance(events[0], Head)
        assert events[1] == Delta(raw=held, completion_id="c1")
        assert raw_of(events) == held + b"".join(STREAM[2:])


async def test_leaving_while_something_is_held(monkeypatch):
    monkeypatch.setattr(answer, "HOLD_S", 60.0)
    sent, gone = asyncio.Event(), asyncio.Event()

    async def script(asked, wire):
        await wire.send(chunked(ROLE, headers=SSE, end=False))
        sent.set()
        await tell_when_gone(wire, gone)

    async with backed(script) as (backend, _):
        task = asyncio.create_task(collect(backend))
        await sent.wait()
        await asyncio.sleep(0.05)  # that it has come to be held
        await leave(task, gone)


# --- ends


@both_ways
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("framed", [True, False])
async def test_death_after_content_is_never_a_clean_end(via, how, framed):
    if not framed and how == "reset" and via == "httpx":
        pytest.skip("the same as close for httpx")
    content = event("a") + event("b") + event("cut")[:30]

    async def script(asked, wire):
        head = (
            chunked(content, headers=SSE, end=False)
            if framed
            else b"HTTP/1.1 200 OK\r\n" + SSE[0].encode() + b"\r\n\r\n" + content
        )
        await wire.send(head)
        if how == "reset":
            await asyncio.sleep(0.02)
            wire.cut()
        return "close"

    async with backed(script, via=via) as (backend, _):
        got = []
        with pytest.raises(UpstreamProtocolError) as caught:  # noqa: PT012
            async with backend(asked()) as events:
                async for one in events:
                    got.append(one)  # noqa: PERF401
        assert raw_of(got) == event("a") + event("b"), "whole events only"
        assert not any(isinstance(one, Finish) for one in got)
        assert not caught.value.retryable


@pytest.mark.parametrize("sent", [b"", b": ping\n\n", ROLE])
async def test_death_before_content_may_fall_back(sent):
    async with backed(replying(chunked(*([sent] if sent else []), headers=SSE, end=False), then="close")) as (
        backend,
        _,
    ):
        with pytest.raises(UpstreamProtocolError) as caught:
            await collect(backend)
        assert caught.value.retryable


@both_ways
@pytest.mark.parametrize(
    ("parts", "clean"),
    [
        ([event("a"), DONE], True),
        ([event("a"), b"data: [DONE]"], True),
        ([event("a"), event(None, "stop")], True),
        ([event("a", "stop").rstrip()], True),
        ([event("a"), event(None, "stop"), DONE, b": bye\n\n"], True),
        ([event("a")], False),
        ([event("a"), event("b")[:-10]], False),
        ([b": ping\n\n"], False),
        ([], False),
        ([b'data: {"type": "vendor.event"}\n\n'], True),
        ([event("a"), b"data: {broken\n\n"], True),
    ],
)
async def test_which_ends_are_clean_when_http_says_so(parts, clean, via):
    async with backed(replying(chunked(*parts, headers=SSE)), via=via) as (backend, _):
        if clean:
            events = await collect(backend)
            assert raw_of(events) == b"".join(parts)
            assert isinstance(events[-1], Finish)
        else:
            with pytest.raises(UpstreamProtocolError, match="without"):
                await collect(backend)


async def test_read_to_close_needs_a_sign_of_the_end():
    cases = (
        ([event("a"), DONE], True),
        ([event("a", "stop")], True),
        ([event("a")], False),
        ([event("a"), b"data: {broken\n\n"], False),
    )
    for parts, clean in cases:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
        async with backed(replying(head, *parts, then="close")) as (backend, _):
            if clean:
                assert isinstance((await collect(backend))[-1], Finish)
            else:
                with pytest.raises(UpstreamProtocolError):
                    await collect(backend)


async def test_after_done_a_hanging_connection_holds_nobody(monkeypatch):
    monkeypatch.setattr(answer, "DRAIN_S", 0.05)

    async def script(asked, wire):
        await wire.send(chunked(*STREAM, headers=SSE, end=False))
        await wire.gone(60)

    async with backed(script) as (backend, _), asyncio.timeout(10):
        assert isinstance((await collect(backend))[-1], Finish)


async def test_connections_are_used_again_after_whole_streams():
    async with backed(replying(chunked(*STREAM, headers=SSE))) as (backend, upstream):
        for _ in range(4):
            await collect(backend)
        assert upstream.connections == 1


async def test_what_cannot_be_read_is_forwarded_and_counted():
    parts = [event("a"), b"data: {broken\n\n", event("b"), DONE]
    async with backed(replying(chunked(*parts, headers=SSE))) as (backend, _):
        events = await collect(backend)
        assert raw_of(events) == b"".join(parts)
        assert [piece.text for piece in pieces_of(events)] == ["a"]
        assert backend.unreadable_answers == 1
    gzip = sized(b"\x1f\x8b...", headers=("content-encoding: gzip", "content-type: application/json"))
    async with backed(replying(gzip)) as (backend, _):
        events = await collect(backend)
        assert (raw_of(events), pieces_of(events), backend.unreadable_answers) == (b"\x1f\x8b...", [], 1)
        assert (b"content-encoding", b"gzip") in events[0].headers


# --- limits and leaving


@both_ways
async def test_limits_are_named(via):
    async def script(asked, wire):
        if asked.json.get("stream"):
            await wire.send(chunked(event("a"), event("b"), headers=SSE, end=False))
        await wire.gone(60)
        return "close"

    # The limit that is not meant is far away: a slow machine reaches none by itself.
    silent = TimeoutSettings(connect=60, first_byte=0.15, idle=60)
    async with asyncio.timeout(20), backed(script, via=via, timeouts=silent) as (backend, _):
        with pytest.raises(UpstreamTimeout, match="first_byte") as caught:
            await collect(backend, asked(b'{"model": "m"}'))
        assert (caught.value.status, caught.value.retryable) == (504, True)
    paused = TimeoutSettings(connect=60, first_byte=60, idle=0.15)
    async with asyncio.timeout(20), backed(script, via=via, timeouts=paused) as (backend, _):
        with pytest.raises(UpstreamTimeout, match="idle") as caught:
            await collect(backend)
        assert not caught.value.retryable


@both_ways
async def test_nobody_there(via):
    async with create_backend(deployment("http://127.0.0.1:9"), SonaSettings()) as backend:
        if via == "httpx":
            backend._client = None
        with pytest.raises(UpstreamUnreachable) as caught:
            await collect(backend)
        assert caught.value.retryable
        with pytest.raises(UpstreamUnreachable):
            await backend.probe()


@both_ways
@pytest.mark.parametrize("phase", ["before the first byte", "mid-stream", "non-stream"])
async def test_leaving_reaches_the_upstream_at_once(phase, via):
    arrived, content, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def script(asked, wire):
        arrived.set()
        if phase == "mid-stream":
            await wire.send(chunked(event("a"), headers=SSE, end=False))
        await tell_when_gone(wire, gone)
        return "close"

    async def consume(backend, body):
        async with backend(asked(body)) as events:
            async for one in events:
                if isinstance(one, Delta):
                    content.set()

    async with backed(script, via=via) as (backend, _):
        task = asyncio.create_task(consume(backend, BODY if phase != "non-stream" else b'{"model": "m"}'))
        async with asyncio.timeout(30):  # httpx is imported first
            await (content if phase == "mid-stream" else arrived).wait()
        assert content.is_set() == (phase == "mid-stream")
        await leave(task, gone)


async def test_leaving_the_block_early_without_cancelling():
    gone = asyncio.Event()

    async def script(asked, wire):
        await wire.send(chunked(event("a"), event("b"), headers=SSE, end=False))
        await tell_when_gone(wire, gone)

    async with backed(script) as (backend, _):
        async with backend(asked()) as events:
            async for one in events:
                if isinstance(one, Delta):
                    break
        async with asyncio.timeout(2):
            await gone.wait()


# --- control plane


@pytest.mark.parametrize(
    ("status", "own_key", "error"),
    [
        (200, False, None),
        (404, False, None),
        (403, True, None),
        (401, False, None),
        (401, True, UpstreamError),
        (503, False, UpstreamError),
        (500, False, UpstreamError),
        (429, False, UpstreamError),
    ],
)
async def test_probe(status, own_key, error):
    fields = {"api_key": "sk"} if own_key else {}
    async with backed(replying(sized(b"{}", status=f"{status} X")), **fields) as (backend, upstream):
        if error is None:
            await backend.probe()
        else:
            with pytest.raises(error):
                await backend.probe()
        assert (upstream.asked[0].method, upstream.asked[0].target) == ("GET", "/v1/models")


async def test_embeddings():
    async with backed(replying(sized(b'{"data": []}', headers=("x-a: 1", "set-cookie: no"))), api_key="sk") as (
        backend,
        upstream,
    ):
        assert await backend.embeddings(b'{"input": "x", "model": "pub"}') == (
            200,
            ((b"x-a", b"1"),),
            b'{"data": []}',
        )
        asked_for = upstream.asked[0]
        assert (asked_for.target, asked_for.body) == ("/v1/embeddings", b'{"input": "x", "model": "up"}')
        assert asked_for.headers["authorization"] == "Bearer sk"


@pytest.mark.parametrize(
    ("status", "own_key", "told", "retryable"),
    [
        (400, True, (400, REFUSED), False),
        (401, False, (401, REFUSED), False),
        (401, True, (502, b""), True),
        (403, True, (403, REFUSED), True),
        (429, False, (429, REFUSED), True),
        (503, True, (503, REFUSED), True),
        (302, True, (502, b""), True),
    ],
)
async def test_a_refusal_of_embeddings_is_one_as_of_answers(status, own_key, told, retryable):
    fields = {"api_key": "sk"} if own_key else {}
    async with backed(replying(sized(REFUSED, status=f"{status} X")), **fields) as (backend, _):
        with pytest.raises(UpstreamError) as caught:
            await backend.embeddings(b'{"input": "x", "model": "pub"}')
        assert (caught.value.status, caught.value.body, caught.value.retryable) == (*told, retryable)


async def test_embeddings_without_end_are_cut_off(monkeypatch):
    monkeypatch.setattr("sona_stream_adapters.openai.control.MAX_BODY_BYTES", 1000)
    async with backed(replying(sized(b"x" * 1001))) as (backend, _):
        with pytest.raises(UpstreamProtocolError):
            await backend.embeddings(b'{"input": "x", "model": "pub"}')


def test_httpx_is_not_loaded_before_it_is_needed():
    code = (
        "import sys, sona_stream_adapters.openai as o; from sona_stream.config.settings import *;"
        "o.create_backend(Deployment(model_name='m', provider='openai', upstream_model='m'), SonaSettings());"
        "print([m for m in ('httpx', 'numba', 'torch', 'uvicorn') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
