"""What breaks is told, cancelled, retried or handed to another upstream, and nothing is left behind."""

import asyncio
import time

import pytest
from dataplane_scripts import (
    CHAT,
    DONE,
    END,
    OK,
    STREAM_HEAD,
    answers,
    ask,
    body,
    piece,
    questions,
    said,
    sends,
    two,
)
from scripted_upstream import serving, sized
from server_clients import Raw, data_events

GOOD = STREAM_HEAD + piece(said("good") + DONE) + END


async def test_an_upstream_that_dies_mid_stream_ends_in_an_error_event(proxy):
    async def script(asked, wire):
        cut = asked.json["cut"].encode()
        await wire.send(STREAM_HEAD, *(piece(said(f"w{i} ")) for i in range(5)))
        await asyncio.sleep(0.02)
        if cut:
            await wire.send(piece(cut))
            await asyncio.sleep(0.02)
        wire.cut()
        return "close"

    async with serving(answers(script)) as upstream, proxy(upstream.url) as it:
        for cut in ("", said("half")[:30].decode(), "data: {"):
            upstream.asked.clear()
            reply = await ask(it.url, body(cut=cut))
            whole = b"".join(said(f"w{i} ") for i in range(5))
            assert reply.body.startswith(whole)
            (error,) = data_events(reply.body[len(whole) :])
            assert b'"error"' in error
            assert b"[DONE]" not in reply.body
            assert len(questions(upstream)) == 1


async def test_an_upstream_that_dies_before_its_first_byte_is_a_502(proxy):
    async with serving(sends(then="close")) as upstream, proxy(upstream.url) as it:
        for tried, stream in enumerate((True, False), 1):
            reply = await ask(it.url, body(stream))
            assert (reply.status, reply.json()["error"]["code"]) == (502, "upstream_unreachable")
            assert len(questions(upstream)) == tried  # the connection was fresh: nothing to retry


PHASES = {"before_first_byte": True, "mid_stream": True, "non_stream": False}


@pytest.mark.parametrize("phase", PHASES)
async def test_a_client_that_leaves_is_seen_by_the_upstream_at_once(proxy, phase):
    arrived, gone = asyncio.Event(), asyncio.Queue()

    async def script(asked, wire):
        if phase == "mid_stream":
            await wire.send(STREAM_HEAD, piece(said("one ")))
        arrived.set()
        gone.put_nowait(await wire.gone())
        return "close"

    async with serving(answers(script)) as upstream, proxy(upstream.url) as it:
        best = 1.0
        for _ in range(3):  # of three, for machines that do other things too
            arrived.clear()
            async with Raw(it.url) as raw:
                raw.post(CHAT, body(PHASES[phase]))
                await asyncio.wait_for(arrived.wait(), 5)
                if phase == "mid_stream":
                    await raw.head()
                    assert b"one" in await raw.chunk()
                left = time.monotonic()
            seen = await asyncio.wait_for(gone.get(), 5)
            assert seen is not None
            best = min(best, seen - left)
        assert best < 0.1
        counted = it.application.registry.get_sample_value("sona_upstream_cancelled_total", {"phase": phase})
        assert counted == 3


async def test_a_stale_connection_is_retried_once(proxy):
    dropped = []

    async def script(asked, wire):
        if asked.nth_on_connection:
            dropped.append(asked)
            return "close"
        await wire.send(OK)
        return None

    async with serving(answers(script)) as upstream, proxy(upstream.url) as it:
        for _ in range(4):
            assert (await ask(it.url, body(False))).status == 200
        assert len(dropped) == 3


async def test_an_upstream_that_lists_nothing_now_leaves_the_program_ready_and_is_left_alone(proxy):
    async def busy(asked, wire):
        await wire.send(sized(b"{}", status="429 Too Many Requests") if asked.method == "GET" else OK)

    async with serving(busy) as first, serving(sends(OK)) as second, proxy(two(first, second)) as it:
        for _ in range(5):
            await asyncio.sleep(0.1)
            async with Raw(it.url) as raw:
                raw.writer.write(b"GET /health/readiness HTTP/1.1\r\nhost: x\r\n\r\n")
                assert (await raw.reply()).status == 200
        assert (await ask(it.url, body(False, model="a"))).status == 200
        for upstream in (first, second):
            assert len([one for one in upstream.asked if one.method == "GET"]) == 1


async def test_another_upstream_steps_in_before_the_first_byte(proxy):
    broken = sized(b'{"error":{"message":"overloaded"}}', status="503 Unavailable")
    async with (
        serving(sends(broken)) as first,
        serving(sends(GOOD)) as second,
        proxy(two(first, second, fallbacks={"a": ("b",)})) as it,
    ):
        reply = await ask(it.url, body(model="a"))
        assert (reply.status, reply.headers["x-sona-model"]) == (200, "b")
        assert reply.headers["x-sona-reason"] == "fallback:a"
        assert b"good" in reply.body
        assert questions(second)[0].json["model"] == "b"


async def test_an_early_error_event_falls_back_too(proxy):
    early = STREAM_HEAD + piece(b'data: {"error":{"message":"engine died","code":500}}\n\n') + END
    async with (
        serving(sends(early)) as first,
        serving(sends(GOOD)) as second,
        proxy(two(first, second, fallbacks={"a": ("b",)})) as it,
    ):
        assert b"good" in (await ask(it.url, body(model="a"))).body


async def test_no_other_upstream_is_asked_after_the_first_byte(proxy):
    async def dies(asked, wire):
        await wire.send(STREAM_HEAD, piece(said("begun ")))
        await asyncio.sleep(0.02)
        wire.cut()
        return "close"

    async with (
        serving(answers(dies)) as first,
        serving(sends(GOOD)) as second,
        proxy(two(first, second, fallbacks={"a": ("b",)})) as it,
    ):
        reply = await ask(it.url, body(model="a"))
        assert b"begun" in reply.body
        assert b'"error"' in reply.body
        assert not questions(second)


async def test_the_clients_own_mistake_falls_back_nowhere(proxy):
    wrong = sized(b'{"error":{"message":"too long"}}', status="400 Bad Request")
    async with (
        serving(sends(wrong)) as first,
        serving(sends(GOOD)) as second,
        proxy(two(first, second, fallbacks={"a": ("b",)})) as it,
    ):
        assert (await ask(it.url, body(model="a"))).status == 400
        assert not questions(second)


async def test_a_client_that_reads_slowly_holds_back_the_upstream(proxy):
    total, sent = 20 << 20, 0
    block = said("x" * 60000)

    async def script(asked, wire):
        nonlocal sent
        await wire.send(STREAM_HEAD)
        for _ in range(total // len(block)):
            await wire.send(piece(block))
            sent += len(block)
        await wire.send(piece(DONE), END)

    async with serving(answers(script)) as upstream, proxy(upstream.url) as it, Raw(it.url) as raw:
        raw.writer.transport.pause_reading()
        raw.post(CHAT, body())
        held = -1
        while held != sent or not sent:
            held = sent
            await asyncio.sleep(0.3)
        # Sockets' buffers of the kernel, ours of 256 KiB and uvicorn's: far from the whole answer.
        assert held < 12 << 20
        raw.writer.transport.resume_reading()
        reply = await raw.reply()
        assert reply.body == block * (total // len(block)) + DONE


async def settled(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


def _resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


async def test_a_hundred_streams_half_of_them_left_leave_nothing_behind(proxy):
    async def script(asked, wire):
        await wire.send(STREAM_HEAD)
        for i in range(8):
            await wire.send(piece(said(f"w{i} ")))
            await asyncio.sleep(0.005)
        await wire.send(piece(DONE), END)

    async def client(url, leaves):
        async with Raw(url) as raw:
            raw.post(CHAT, body(), "connection: close")
            await raw.head()
            if leaves:
                await raw.chunk()
            else:
                text = b""
                while chunk := await raw.chunk():
                    text += chunk
                assert text.endswith(DONE)

    async with serving(answers(script)) as upstream, proxy(upstream.url) as it:
        resident = []
        tasks = len(asyncio.all_tasks())
        for _ in range(4):
            await asyncio.gather(*(client(it.url, i % 2) for i in range(100)))
            await settled(lambda: not it.app.answering)
            resident.append(_resident())
        pools = it.application.backends["*"][0]._client._pools.values()
        assert sum(len(pool._counted) - len(pool._idle) for pool in pools) == 0
        # Besides the pool's own, the upstream holds connections of httpx's probes.
        await settled(lambda: upstream.open <= sum(len(pool._idle) for pool in pools) + 2)
        # The upstream's connections are tasks of this loop, too.
        await settled(lambda: len(asyncio.all_tasks()) - upstream.open <= tasks)
        assert not it.application._meter.waited
        assert resident[-1] - resident[1] < 16 << 20
        assert it.application.registry.get_sample_value("sona_in_flight_requests") == 0
