"""What passes, passes as it is."""

import random

import pytest
from dataplane_scripts import (
    END,
    OK,
    RICH,
    STREAM_HEAD,
    USAGE,
    WHOLE,
    answers,
    ask,
    body,
    piece,
    questions,
    sends,
)
from scripted_upstream import serving, sized
from server_clients import data_events


async def test_a_stream_passes_byte_for_byte_however_it_is_cut(proxy):
    cuts = random.Random(7)

    async def script(asked, wire):
        await wire.send(STREAM_HEAD)
        rest = RICH
        while rest:
            size = cuts.choice((1, 2, 3, 7, 60, 500))
            await wire.send(piece(rest[:size]))
            rest = rest[size:]
        await wire.send(END)

    async with serving(answers(script)) as upstream, proxy(upstream.url) as it:
        for _ in range(8):
            reply = await ask(it.url, body())
            assert reply.body == RICH
            assert (reply.status, reply.headers["content-type"]) == (200, "text/event-stream")


async def test_behind_a_wildcard_the_question_passes_byte_for_byte(proxy):
    spelled = b'{ "vendor": [1.0, 1e2],\n"model":"\\u006d", "messages":[{"role":"user","content":"\\u00e9"}] }'
    answer = sized(WHOLE, headers=("content-type: application/json",))
    async with serving(sends(answer)) as upstream, proxy(upstream.url) as it:
        for data in (body(), body(False), spelled):
            upstream.asked.clear()
            reply = await ask(it.url, data)
            assert (reply.status, reply.body) == (200, WHOLE)
            assert questions(upstream)[0].body == data
            assert reply.headers["x-sona-model"] == "m"


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": -1},
        {"max_tokens": 100.0, "n": "2"},
        {"temperature": 2.5, "top_p": 7, "seed": 1 << 70},
        {"messages": [{"role": "user", "content": "q"}, {"role": "ipython", "content": {"output": 5}}]},
        {"top_logprobs": 25},
        {"user": 12, "stop": 5},
    ],
)
async def test_an_upstreams_own_limits_are_its_own(proxy, fields):
    async with serving(sends(OK)) as upstream, proxy(upstream.url) as it:
        data = body(False, **fields)
        assert (await ask(it.url, data)).status == 200
        assert questions(upstream)[0].body == data


async def test_usage_is_neither_asked_for_nor_changed(proxy):
    async with serving(sends(STREAM_HEAD + piece(RICH) + END)) as upstream, proxy(upstream.url) as it:
        reply = await ask(it.url, body(stream_options={"include_usage": True}))
        assert reply.body.count(USAGE) == 1
        await ask(it.url, body())
        with_usage, without = (one.json for one in questions(upstream))
        assert with_usage["stream_options"] == {"include_usage": True}
        assert "stream_options" not in without


REFUSALS = {
    b"429 Too Many Requests": (
        b'{"error": {"type": "rate_limit_error",\n "code": "rate"}}',
        ("retry-after: 7", "x-ratelimit-remaining-requests: 0"),
    ),
    b"400 Bad Request": (b'{"error": {"code": "context_length_exceeded", "param": "messages"}, "v": 1.0}', ()),
    b"529 Overloaded": (b"not even JSON", ("retry-after: 1",)),
}


async def test_an_upstreams_error_passes_with_status_headers_and_body(proxy):
    async def script(asked, wire):
        status = asked.json["status"]
        told, headers = REFUSALS[status.encode()]
        await wire.send(sized(told, status=status, headers=("content-type: application/json", *headers)))

    async with serving(answers(script)) as upstream, proxy(upstream.url) as it:
        for status, (told, headers) in REFUSALS.items():
            for stream in (True, False):
                upstream.asked.clear()
                reply = await ask(it.url, body(stream, status=status.decode()))
                assert (reply.status, reply.body) == (int(status.split()[0]), told)
                for line in headers:
                    name, value = line.split(": ")
                    assert reply.headers[name] == value
                assert len(questions(upstream)) == 1


async def test_headers_travel_by_rule(proxy):
    told = (
        "content-type: application/json",
        "x-request-id: up-9",
        "x-ratelimit-remaining-tokens: 5",
        "x-vendor: v",
        "set-cookie: a=b",
        "server: theirs",
        "keep-alive: timeout=1",
        "x-sona-model: forged",
    )
    sent = (
        "authorization: Bearer sk-mine",
        "cookie: secret=1",
        "x-internal: token",
        "x-request-id: mine-1",
        "traceparent: 00-1-2-03",
        "openai-organization: org",
        "x-sona-adapt: off",
        "te: trailers",
    )
    async with serving(sends(sized(WHOLE, headers=told))) as upstream, proxy(upstream.url) as it:
        reply = await ask(it.url, body(False), *sent)
        up = questions(upstream)[0].headers
        for name in ("authorization", "x-request-id", "traceparent", "openai-organization"):
            assert f"{name}: {up[name]}" in sent
        assert not {"cookie", "x-internal", "x-sona-adapt", "te"} & up.keys()
        assert (reply.headers["x-request-id"], reply.headers["x-ratelimit-remaining-tokens"]) == ("up-9", "5")
        assert (reply.headers["x-vendor"], reply.headers["x-sona-model"]) == ("v", "m")
        assert not {"set-cookie", "keep-alive"} & reply.headers.keys()
        assert reply.headers.get("server") != "theirs"
        assert reply.headers["x-sona-request-id"].startswith("req-")


async def test_completions_pass_too(proxy):
    said = b'data: {"id":"t1","choices":[{"index":0,"text":"hi","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    async with serving(sends(STREAM_HEAD + piece(said) + END)) as upstream, proxy(upstream.url) as it:
        reply = await ask(it.url, b'{"model":"m","prompt":"say hi","stream":true}', path="/v1/completions")
        assert reply.body == said
        assert data_events(said)[-1] == b"[DONE]"
        assert questions(upstream)[0].target == "/v1/completions"
