"""What the client sends and reads, against a real upstream, on both event loops."""

import asyncio
import itertools

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_upstream import chunked, serving, sized

from sona_stream.errors import UpstreamProtocolError, UpstreamUnreachable
from sona_stream.transport import Client


def on_both_loops(test):
    """Runs a coroutine function on stock asyncio and on uvloop."""

    def run(loop):
        factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(test())

    run.__doc__ = test.__doc__
    return pytest.mark.parametrize("loop", ["asyncio", "uvloop"])(run)


async def ask(client, url, method="POST", headers=(), body=b"{}"):
    async with client.request(method, url, headers, body) as response:
        return response.status, response.headers, await response.read()


@on_both_loops
async def test_exchange_and_reuse():
    async def script(asked, wire):
        await wire.send(sized(asked.body * 2, headers=("X-Trace: a b",)))

    async with serving(script) as upstream, Client() as client:
        for _ in range(3):
            got = await ask(client, f"{upstream.url}/v1/x?y=1", headers=[(b"x-a", b"1")], body=b"ab")
            assert got == (200, ((b"content-length", b"4"), (b"x-trace", b"a b")), b"abab")
        asked = upstream.asked[0]
        assert (asked.method, asked.target, asked.body) == ("POST", "/v1/x?y=1", b"ab")
        assert asked.headers == {"host": upstream.url[7:], "x-a": "1", "content-length": "2"}
        assert (upstream.connections, client.connections_opened, client.connections_reused) == (1, 1, 2)


@on_both_loops
async def test_framings():
    answers = {
        "/chunked": chunked(b"ab", b"c" * 70000, b"d"),
        "/sized": sized(b"ab" + b"c" * 70000 + b"d"),
        "/to-close": b"HTTP/1.1 200 OK\r\n\r\nab" + b"c" * 70000 + b"d",
        "/http10": b"HTTP/1.0 200 OK\r\n\r\nab" + b"c" * 70000 + b"d",
        "/204": b"HTTP/1.1 204 No Content\r\n\r\n",
        "/empty": sized(b""),
    }

    async def script(asked, wire):
        await wire.send(answers[asked.target])
        return "close" if asked.target in ("/to-close", "/http10") else None

    async with serving(script) as upstream, Client() as client:
        for target in answers:
            async with client.request("POST", upstream.url + target) as response:
                body = await response.read()
            assert body == (b"" if target in ("/204", "/empty") else b"ab" + b"c" * 70000 + b"d"), target
            assert response.read_to_close == (target in ("/to-close", "/http10"))
        assert upstream.connections == 3, "the two read-to-close answers cost a connection each"


@on_both_loops
async def test_head_has_no_body_and_keeps_its_connection():
    async def script(asked, wire):
        await wire.send(
            b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n" if asked.method == "HEAD" else sized(b"x")
        )

    async with serving(script) as upstream, Client() as client:
        for method in ("HEAD", "GET", "HEAD", "GET"):
            status, _, body = await ask(client, upstream.url, method=method, body=b"")
            assert (status, body) == (200, b"" if method == "HEAD" else b"x")
        assert upstream.connections == 1
        assert "content-length" not in upstream.asked[1].headers


@on_both_loops
async def test_informational_answers_are_skipped():
    async def script(asked, wire):
        await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
        await asyncio.sleep(0.01)
        await wire.send(b"HTTP/1.1 102 Processing\r\n\r\n" + sized(b"done", headers=("x: y",)))

    async with serving(script) as upstream, Client() as client:
        for _ in range(2):
            assert await ask(client, upstream.url) == (200, ((b"content-length", b"4"), (b"x", b"y")), b"done")
        assert upstream.connections == 1


@on_both_loops
async def test_pieces_that_came_together_are_handed_once():
    async def script(asked, wire):
        await wire.send(chunked(*[b"%02d" % i for i in range(50)]))

    async with serving(script) as upstream, Client() as client, client.request("POST", upstream.url) as response:
        chunks = [chunk async for chunk in response]
    assert b"".join(chunks) == b"".join(b"%02d" % i for i in range(50))
    assert len(chunks) <= 2


async def test_many_at_once_and_last_in_first_out():
    async def script(asked, wire):
        await asyncio.sleep(0.02)
        await wire.send(sized(asked.body))

    async with serving(script) as upstream, Client() as client:
        bodies = [b"%d" % i for i in range(40)]
        got = await asyncio.gather(*(ask(client, upstream.url, body=body) for body in bodies))
        assert [body for _, _, body in got] == bodies
        assert upstream.connections == 40
        for _ in range(5):
            await ask(client, upstream.url)
        assert upstream.connections == 40
        assert upstream.asked[-1].nth_on_connection == 5, "one connection, used last, served all five"


async def test_cap_queues_and_a_cancelled_waiter_loses_no_slot():
    running = most = 0

    async def script(asked, wire):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        await wire.send(sized(b"x"))

    async with serving(script) as upstream, Client(max_connections=2) as client:
        tasks = [asyncio.create_task(ask(client, upstream.url)) for _ in range(12)]
        await asyncio.sleep(0.005)
        for task in tasks[3:9:2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(one, asyncio.CancelledError) for one in results) == 3
        assert sum(one[2] == b"x" for one in results if not isinstance(one, BaseException)) == 9
        assert most == 2
        assert upstream.connections == 2


async def test_cap_slot_comes_back_when_connecting_fails():
    async with Client(max_connections=1) as client:
        for _ in range(3):
            with pytest.raises(UpstreamUnreachable):
                await ask(client, "http://127.0.0.1:9")


async def test_cap_waiters_fail_too_when_nobody_is_there():
    async with Client(max_connections=1) as client, asyncio.timeout(2):
        done = await asyncio.gather(*(ask(client, "http://127.0.0.1:9") for _ in range(4)), return_exceptions=True)
    assert [type(one) for one in done] == [UpstreamUnreachable] * 4


async def test_cap_slot_granted_to_a_waiter_that_is_cancelled_goes_on():
    async def script(asked, wire):
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n")
        await asyncio.sleep(0.02)
        await wire.send(b"x")

    async with serving(script) as upstream, Client(max_connections=1) as client, asyncio.timeout(2):
        async with client.request("POST", upstream.url) as response:
            waiter = asyncio.create_task(ask(client, upstream.url))
            await asyncio.sleep(0)
            await response.read()
        waiter.cancel()  # in the very turn in which it was handed the connection
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert (await ask(client, upstream.url))[2] == b"x"
        assert len(upstream.asked) == 2


async def test_idle_connections_expire():
    async def script(asked, wire):
        await wire.send(sized(b"x"))

    async with serving(script) as upstream, Client(idle_expiry=0.05) as client:
        await ask(client, upstream.url)
        await ask(client, upstream.url)
        assert (upstream.connections, upstream.open) == (1, 1)
        await asyncio.sleep(0.12)
        assert upstream.open == 0
        await ask(client, upstream.url)
        assert upstream.connections == 2


async def test_aclose_lets_a_running_answer_end():
    async def script(asked, wire):
        await wire.send(chunked(b"a", end=False))
        await asyncio.sleep(0.05)
        await wire.send(b"1\r\nb\r\n0\r\n\r\n")

    async with serving(script) as upstream:
        client = Client()
        async with client.request("POST", upstream.url) as response:
            closing = asyncio.create_task(client.aclose(grace=2))
            assert await response.read() == b"ab"
            began = asyncio.get_running_loop().time()
            await closing
            assert asyncio.get_running_loop().time() - began < 0.5
        with pytest.raises(RuntimeError, match="closed"):
            client.request("POST", upstream.url)


async def test_aclose_cuts_what_outlives_its_grace():
    async def script(asked, wire):
        await wire.send(chunked(b"a", end=False))
        await wire.gone()

    async with serving(script) as upstream:
        client = Client()
        async with client.request("POST", upstream.url) as response:
            await client.aclose(grace=0.02)
            with pytest.raises(UpstreamProtocolError):
                await response.read()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x-a", b"1\r\nx-evil: 1"),
        (b"x-a", b"1\nx-evil: 1"),
        (b"x-a", b"1\r"),
        (b"x-a", b"a\0b"),
        (b"x a", b"1"),
        (b"x:a", b"1"),
        (b"", b"1"),
        (b"x\r\na", b"1"),
        (b"content-length", b"0"),
        (b"Transfer-Encoding", b"chunked"),
        (b"host", b"else.where"),
    ],
)
async def test_header_injection_is_refused(name, value):
    async with Client() as client:
        with pytest.raises(ValueError):
            client.request("POST", "http://127.0.0.1:9/", [(b"ok", b"1"), (name, value)], b"")


@pytest.mark.parametrize(
    "url", ["ftp://a/b", "http://", "http://a b/", "http://a/\r\nx: y", "http://u:p@a/", "/v1", "http://a:99999/"]
)
async def test_bad_urls_are_refused(url):
    async with Client() as client:
        with pytest.raises(ValueError):
            client.request("GET", url)


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 400), max_size=12),
    framing=st.sampled_from(["chunked", "sized"]),
)
@settings(max_examples=30, deadline=None)
def test_any_cut_of_the_stream_gives_the_same_bytes(pieces, cuts, framing):
    raw = chunked(*pieces) if framing == "chunked" else sized(b"".join(pieces))
    spots = sorted({min(cut, len(raw)) for cut in cuts} | {0, len(raw)})

    async def script(asked, wire):
        for start, end in itertools.pairwise(spots):
            await wire.send(raw[start:end])
            await asyncio.sleep(0)

    async def run():
        async with serving(script) as upstream, Client() as client:
            for _ in range(2):
                assert (await ask(client, upstream.url))[2] == b"".join(pieces)
            assert upstream.connections == 1

    asyncio.run(run())
