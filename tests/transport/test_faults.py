"""Upstreams that die, stall, lie or talk too much; consumers that are slow or leave."""

import asyncio
import contextlib
import time
import tracemalloc

import pytest
import uvloop
from scripted_upstream import chunked, serving, sized

from sona_stream.errors import UpstreamProtocolError, UpstreamTimeout, UpstreamUnreachable
from sona_stream.transport import Client, Timeouts

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
BROKEN = {
    "before a byte": (b"", UpstreamUnreachable),
    "in the status line": (b"HTTP/1.1 2", UpstreamUnreachable),
    "in the headers": (HEAD, UpstreamUnreachable),
    "after the headers": (HEAD + b"transfer-encoding: chunked\r\n\r\n", UpstreamProtocolError),
    "in a chunk": (HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nab", UpstreamProtocolError),
    "between chunks": (HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n", UpstreamProtocolError),
    "before the last chunk's end": (
        HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n",
        UpstreamProtocolError,
    ),
    "in a sized body": (HEAD + b"content-length: 5\r\n\r\nab", UpstreamProtocolError),
}
NOT_HTTP = {
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a bad chunk size": HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    "two lengths": HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "length and chunks": HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    "an upgrade": b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\nabc",
    "a folded header": b"HTTP/1.1 200 OK\r\nx-a: 1\r\n 2\r\ncontent-length: 0\r\n\r\n",
}


async def ask(client, url, **options):
    async with client.request("POST", url, (), b"{}", **options) as response:
        return await response.read()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("where", BROKEN)
async def test_death_is_an_error_never_a_hang_or_a_clean_end(where, how):
    data, kind = BROKEN[where]

    async def script(asked, wire):
        await wire.send(data)
        if how == "close":
            return "close"
        await asyncio.sleep(0.01)
        wire.cut()
        return "close"

    async with serving(script) as upstream, Client() as client:
        for _ in range(2):
            with pytest.raises(kind) as caught:
                async with asyncio.timeout(2):
                    await ask(client, upstream.url)
            assert type(caught.value) is kind
            assert caught.value.retryable == (kind is UpstreamUnreachable)
        assert upstream.connections == 2, "fresh connections are not retried, broken ones not kept"


@pytest.mark.parametrize("what", NOT_HTTP)
async def test_what_is_not_http_is_refused(what):
    async def script(asked, wire):
        await wire.send(NOT_HTTP[what])
        await wire.gone(1)
        return "close"

    async with serving(script) as upstream, Client() as client:
        with pytest.raises(UpstreamProtocolError):
            async with asyncio.timeout(1):
                await ask(client, upstream.url)


async def test_bytes_before_the_death_arrive():
    async def script(asked, wire):
        await wire.send(chunked(b"abc", end=False))
        return "close"

    async with serving(script) as upstream, Client() as client, client.request("POST", upstream.url) as response:
        await asyncio.sleep(0.05)
        assert await anext(response) == b"abc"
        for _ in range(2):
            with pytest.raises(UpstreamProtocolError):
                await anext(response)


@pytest.mark.parametrize("retry", [True, False])
async def test_a_stale_connection_is_retried_once_when_asked(retry):
    async def script(asked, wire):
        if asked.nth_on_connection:
            return "close"
        await wire.send(sized(b"x"))
        return None

    async with serving(script) as upstream, Client(retry_stale=retry) as client:
        assert await ask(client, upstream.url) == b"x"
        if retry:
            assert await ask(client, upstream.url) == b"x"
            assert client.stale_retries == 1
        else:
            with pytest.raises(UpstreamUnreachable):
                await ask(client, upstream.url)
        assert upstream.connections == 1 + retry


async def test_a_reused_connection_that_dies_after_a_byte_is_not_retried():
    async def script(asked, wire):
        if asked.nth_on_connection:
            await wire.send(b"H")
            await asyncio.sleep(0.02)
            return "close"
        await wire.send(sized(b"x"))
        return None

    async with serving(script) as upstream, Client() as client:
        await ask(client, upstream.url)
        with pytest.raises(UpstreamUnreachable):
            await ask(client, upstream.url)
        assert (len(upstream.asked), client.stale_retries) == (2, 0)


async def test_the_retry_itself_is_not_retried():
    async def script(asked, wire):
        if len(upstream.asked) > 1:
            return "close"
        await wire.send(sized(b"x"))
        return None

    async with serving(script) as upstream, Client() as client:
        await ask(client, upstream.url)
        with pytest.raises(UpstreamUnreachable):
            await ask(client, upstream.url)
        assert len(upstream.asked) == 3


async def test_an_idle_connection_that_closes_leaves_the_pool():
    async def script(asked, wire):
        await wire.send(sized(b"x"))
        return "close"

    async with serving(script) as upstream, Client() as client:
        for _ in range(3):
            assert await ask(client, upstream.url) == b"x"
            await asyncio.sleep(0.02)
        assert (upstream.connections, client.stale_retries) == (3, 0)


@pytest.mark.parametrize("late", [False, True])
async def test_an_answer_nobody_asked_for_never_answers_the_next_request(late):
    async def script(asked, wire):
        if asked.nth_on_connection == 0 and asked.target == "/poison":
            if late:
                await wire.send(sized(b"mine"))
                await asyncio.sleep(0.02)
                await wire.send(sized(b"poison"))
            else:
                await wire.send(sized(b"mine") + sized(b"poison"))
            return
        await wire.send(sized(b"clean"))

    async with serving(script) as upstream, Client() as client:
        assert await ask(client, f"{upstream.url}/poison") == b"mine"
        await asyncio.sleep(0.05)
        assert await ask(client, f"{upstream.url}/next") == b"clean"
        assert upstream.connections == 2


async def test_an_answer_before_the_request_was_read_ends_the_connection():
    async def script(asked, wire):
        await wire.send(sized(b"x"))

    async def early(reader, writer):
        await reader.read(1000)
        writer.write(sized(b"too large", status="413 Payload Too Large"))
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.close()

    server = await asyncio.start_server(early, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, Client() as client:
        async with client.request("POST", url, (), b"x" * (32 << 20)) as response:
            assert (response.status, await response.read()) == (413, b"too large")
        assert client._pools.popitem()[1].take_idle() is None
        await asyncio.sleep(0.25)


# --- limits


async def test_connect_timeout_is_named():
    async def never(reader, writer):
        await reader.read()
        writer.close()

    # A TLS handshake that nobody answers: TCP connects, the connection never stands.
    server = await asyncio.start_server(never, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Client(timeouts=Timeouts(connect=0.05)) as client:
        with pytest.raises(UpstreamTimeout, match="connect") as caught:
            await ask(client, f"https://127.0.0.1:{port}")
        assert (caught.value.status, caught.value.retryable) == (504, True)


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + b"transfer-encoding: chunked\r\n\r\n"])
async def test_first_byte_timeout_is_named_also_after_the_headers(sent):
    async def script(asked, wire):
        await wire.send(sent)
        await wire.gone()
        return "close"

    limits = Timeouts(first_byte=0.08, idle=0.01)
    async with serving(script) as upstream, Client() as client:
        began = time.monotonic()
        with pytest.raises(UpstreamTimeout, match="first_byte"):
            await ask(client, upstream.url, timeouts=limits)
        assert 0.07 < time.monotonic() - began < 4


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_idle_timeout_is_named_and_counts_from_the_last_byte(factory):
    async def script(asked, wire):
        await wire.send(chunked(end=False))
        for _ in range(3):
            await asyncio.sleep(0.4)
            await wire.send(b"1\r\nx\r\n")
        await wire.gone()
        return "close"

    async def run():
        async with serving(script) as upstream, Client(timeouts=Timeouts(first_byte=60, idle=1.0)) as client:
            async with client.request("POST", upstream.url) as response:
                got, began = b"", time.monotonic()
                with pytest.raises(UpstreamTimeout, match="idle"):  # noqa: PT012
                    async for chunk in response:
                        got += chunk
                assert got == b"xxx", "later than the limit after the first byte"
                assert 2.1 < time.monotonic() - began < 30
            assert upstream.connections == 1

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run())


async def test_a_slow_consumer_is_not_a_silent_upstream():
    async def script(asked, wire):
        await wire.send(chunked(b"ab", end=False))
        await asyncio.sleep(0.3)
        await wire.send(b"2\r\ncd\r\n")
        await asyncio.sleep(0.4)
        await wire.send(b"0\r\n\r\n")

    async with (
        serving(script) as upstream,
        Client(timeouts=Timeouts(idle=0.6, first_byte=5)) as client,
        client.request("POST", upstream.url) as response,
    ):
        assert await anext(response) == b"ab"
        assert await anext(response) == b"cd"  # the idle limit is set now
        await asyncio.sleep(0.1)
        assert response.complete is False
        await asyncio.sleep(0.7)
        assert await response.read() == b""


async def test_a_limit_that_passes_while_nobody_waits_passes_unseen():
    async def script(asked, wire):
        await wire.send(chunked(b"ab", end=False))
        await asyncio.sleep(0.01)
        await wire.send(b"2\r\ncd\r\n")
        await asyncio.sleep(0.8)
        await wire.send(b"0\r\n\r\n")

    async with (
        serving(script) as upstream,
        Client(timeouts=Timeouts(idle=0.6, first_byte=5)) as client,
        client.request("POST", upstream.url) as response,
    ):
        assert await anext(response) == b"ab"
        assert await anext(response) == b"cd"
        await asyncio.sleep(0.7)
        assert await response.read() == b"", "the limit counts from when the consumer waits"


async def test_a_timer_of_an_earlier_exchange_does_not_cut_a_later_one():
    async def script(asked, wire):
        await asyncio.sleep(1.2 if asked.nth_on_connection else 0)
        await wire.send(sized(b"x"))

    async with serving(script) as upstream, Client() as client:
        assert await ask(client, upstream.url, timeouts=Timeouts(first_byte=1)) == b"x"
        assert await ask(client, upstream.url, timeouts=Timeouts(first_byte=60)) == b"x"
        assert upstream.connections == 1


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nx-big: " + b"a" * 70_000 + b"\r\ncontent-length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: %s\r\n" % (i, b"a" * 100) for i in range(800)) + b"\r\n",
        b"HTTP/1.1 103 Early\r\nlink: " + b"b" * 1000 + b"\r\n\r\n",
    ],
    ids=["one header", "many headers", "endless 1xx"],
)
async def test_giant_heads_are_refused(head):
    async def script(asked, wire):
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                await wire.send(head)
        return "close"

    async with serving(script) as upstream, Client() as client:
        with pytest.raises(UpstreamProtocolError, match="bytes of headers"):
            async with asyncio.timeout(2):
                await ask(client, upstream.url)


# --- back-pressure and leaving


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_slow_reader_bounds_memory_and_loses_nothing(factory):
    total, piece, sent = 24 << 20, b"z" * 65536, 0

    async def script(asked, wire):
        nonlocal sent
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        for _ in range(total // len(piece)):
            await wire.send(piece)
            sent += len(piece)

    async def run():
        async with serving(script) as upstream, Client(buffer_bytes=1 << 18) as client:
            async with client.request("POST", upstream.url) as response:
                tracemalloc.start()
                await asyncio.sleep(0.4)
                held = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                assert held < 4 << 20, "client's buffer and the upstream's own together"
                assert sent < total, "the upstream was held back"
                assert len(await response.read()) == total
            assert await ask(client, upstream.url) is not None
            assert upstream.connections == 1

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run())


@pytest.mark.parametrize("phase", ["before the head", "before the first byte", "mid-stream"])
@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_leaving_reaches_the_upstream_at_once(phase, factory):
    arrived, started, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def script(asked, wire):
        arrived.set()
        if phase != "before the head":
            await wire.send(chunked(end=False))
        if phase == "mid-stream":
            await wire.send(b"1\r\nx\r\n")
        if await wire.gone(60) is not None:
            gone.set()
        return "close"

    async def consume(client, url):
        async with client.request("POST", url) as response:
            if phase == "mid-stream":
                await anext(response)
            started.set()
            await anext(response)

    async def run():
        async with serving(script) as upstream, Client() as client:
            task = asyncio.create_task(consume(client, upstream.url))
            async with asyncio.timeout(30):
                await (arrived if phase == "before the head" else started).wait()
            assert started.is_set() == (phase != "before the head")
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            async with asyncio.timeout(2):  # no limit of the client's is as short
                await gone.wait()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run())


async def test_leaving_early_costs_the_connection_and_reading_all_keeps_it():
    async def script(asked, wire):
        await wire.send(chunked(b"a", b"b", end=asked.target == "/whole"))
        if asked.target != "/whole":
            await wire.gone()

    async with serving(script) as upstream, Client() as client:
        for target, connections in (("/whole", 1), ("/part", 1), ("/whole", 2), ("/whole", 2)):
            async with client.request("POST", upstream.url + target) as response:
                await anext(response)
                await asyncio.sleep(0.01)
            assert upstream.connections == connections
            with pytest.raises((UpstreamProtocolError, StopAsyncIteration)):
                await anext(response)
