"""The application behind uvicorn, on a real socket: disconnects, reuse, slow readers, the `openai` client."""

import asyncio
import gc
import json
import logging

import openai
import pytest
from server_clients import Raw, chat_bytes, data_events, texts
from server_fakes import HEAD, FakeServices, Script, forever, spoken

from sona_stream.errors import UpstreamProtocolError
from sona_stream.events import Delta, Finish, Head, Piece
from sona_stream.server import create_app

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("steps", "stream"),
    [
        ([forever], True),
        ([HEAD, Delta(pieces=(Piece(text="a"),)), forever], True),
        ([HEAD, Delta(pieces=(Piece(text="a"),)), forever], False),
    ],
    ids=["before-first-byte", "mid-stream", "non-stream"],
)
async def test_leaving_cancels_the_backend_at_once(listening, caplog, steps, stream):
    services = FakeServices(*steps)
    async with listening(create_app(services)) as url, Raw(url) as client:
        client.post(CHAT, chat_bytes(stream=stream))
        await asyncio.wait_for(services.pipeline.entered.wait(), 2)
        if stream and len(steps) > 1:
            assert (await client.head())[0] == 200
        await client.close()
        began = asyncio.get_running_loop().time()
        await asyncio.wait_for(services.pipeline.exited.wait(), 2)
        assert asyncio.get_running_loop().time() - began < 0.5
        assert services.pipeline.ended == ["CancelledError"]
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == [], "no traceback, no noise"


async def test_a_connection_serves_many_requests_and_errors(listening):
    services = FakeServices(*spoken("Hello"))
    async with listening(create_app(services)) as url, Raw(url) as client:
        for _ in range(3):
            client.post(CHAT, chat_bytes())
            reply = await client.reply()
            assert (reply.status, texts(reply.body)) == (200, "Hello")
            client.post(CHAT, b"{")
            assert (await client.reply()).status == 400
            client.post("/nowhere", b"")
            assert (await client.reply()).status == 404
            client.post(CHAT, chat_bytes(stream=False))
            assert (await client.reply()).json()["choices"][0]["message"]["content"] == "Hello"
    assert services.pipeline.ended == ["complete"] * 6


async def test_pipelined_requests_are_answered_in_order(listening):
    services = FakeServices()
    async with listening(create_app(services)) as url, Raw(url) as client:
        for n in range(4):
            client.post(CHAT, chat_bytes(stream=bool(n % 2)))
        for n in range(4):
            reply = await client.reply()
            assert reply.headers["content-type"].startswith("text/event-stream" if n % 2 else "application/json")
    assert services.pipeline.ended == ["complete"] * 4


async def test_every_increment_is_sent_at_once(listening):
    go_on = asyncio.Semaphore(0)
    steps = [HEAD]
    for word in ("one", "two", "three"):
        steps += [go_on.acquire, Delta(raw=f'data: "{word}"\n\n'.encode())]
    async with listening(create_app(FakeServices(*steps, Finish(raw=b"")))) as url, Raw(url) as client:
        client.post(CHAT, chat_bytes())
        for word in ("one", "two", "three"):
            go_on.release()
            if word == "one":
                await client.head()
            assert await client.chunk() == f'data: "{word}"\n\n'.encode()
        assert await client.chunk() == b""


async def test_an_error_mid_stream_ends_the_body_cleanly_with_an_event(listening):
    steps = [Head(model="m1"), Delta(raw=b'data: {"n":1}\n\n'), UpstreamProtocolError("the upstream died")]
    async with listening(create_app(FakeServices(*steps))) as url, Raw(url) as client:
        client.post(CHAT, chat_bytes())
        events = data_events((await client.reply()).body)
        assert json.loads(events[-1])["error"]["code"] == "upstream_protocol_error"


async def test_a_reader_that_stands_still_holds_back_the_backend_and_can_leave(listening):
    made = []
    chunk = Delta(raw=b"data: " + b"x" * 65536 + b"\n\n")

    def endless():
        yield HEAD
        while True:
            yield lambda: made.append(1)
            yield chunk

    services = FakeServices()
    services.pipeline = Script()
    services.pipeline.steps = endless()
    async with listening(create_app(services)) as url, Raw(url) as client:
        client.post(CHAT, chat_bytes())
        client.writer.transport.pause_reading()
        seen = -1
        while seen != len(made):
            seen = len(made)
            await asyncio.sleep(0.2)
        assert 0 < seen < 500, "bounded by the socket's buffers"
        client.writer.transport.abort()
        await asyncio.wait_for(services.pipeline.exited.wait(), 2)


async def test_a_body_over_the_limit_is_refused_while_it_is_sent(listening):
    async with listening(create_app(FakeServices())) as url, Raw(url) as client:
        client.writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n{")
        assert (await client.reply()).status == 413


async def test_the_openai_client(listening):
    services = FakeServices(*spoken("Paris", " it is"))
    async with (
        listening(create_app(services)) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-none", max_retries=0) as client,
    ):
        ask = {"model": "m1", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
        whole = await client.chat.completions.create(**ask)
        assert whole.choices[0].message.content == "Paris it is"
        assert whole.usage.total_tokens == 6
        said, last = "", None
        stream = await client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
        async for event in stream:
            said += "".join(choice.delta.content or "" for choice in event.choices)
            last = event
        assert (said, last.usage.completion_tokens) == ("Paris it is", 2)
        assert (await client.completions.create(model="m1", prompt="x")).choices[0].text == "Paris it is"
        assert [model.id async for model in client.models.list()] == ["sona/auto", "m1", "m2"]
        assert (await client.models.retrieve("m2")).id == "m2"
        with pytest.raises(openai.BadRequestError) as raised:
            await client.chat.completions.create(**ask, extra_body={"user": True})
        assert raised.value.param == "user"
        services.pipeline.steps = [HEAD, Delta(pieces=(Piece(text="a"),)), UpstreamProtocolError("it died")]
        stream = await client.chat.completions.create(**ask, stream=True)
        with pytest.raises(openai.APIError, match="it died"):
            async for _ in stream:
                pass
    gc.collect()


@pytest.mark.parametrize("where", ["head", "one header", "url", "trailers"])
async def test_what_is_no_body_is_bounded(services, listening, where):
    """Before anybody's key is looked at, a stranger must not fill the memory."""
    async with listening(create_app(services)) as url, Raw(url) as client:
        begin, more = {
            "head": (b"POST /v1/chat/completions HTTP/1.1\r\n", b"x: " + b"y" * 997 + b"\r\n"),
            "one header": (b"POST /v1/chat/completions HTTP/1.1\r\nx: ", b"y" * 1000),
            "url": (b"GET /", b"y" * 1000),
            "trailers": (
                b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
                b"x: " + b"y" * 997 + b"\r\n",
            ),
        }[where]
        client.writer.write(begin)

        async def two_megabytes():
            for _ in range(2000):
                client.writer.write(more)
                await client.writer.drain()
                await asyncio.sleep(0)

        with pytest.raises(ConnectionError):
            await two_megabytes()
        big = b"POST /nowhere HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 30_000 + b"\r\n"
        async with Raw(url) as other:
            other.writer.write(big + b"content-length: 300000\r\n\r\n" + b"z" * 300_000)
            assert (await other.head())[0] == 404
