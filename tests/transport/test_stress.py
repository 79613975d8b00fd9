"""Many exchanges over faulty connections: every answer belongs to its request, nothing hangs, nothing is kept."""

import asyncio
import gc
import random

import pytest
import uvloop
from scripted_upstream import chunked, serving, sized

from sona_stream.errors import UpstreamError
from sona_stream.transport import Client, Timeouts
from sona_stream.transport.connection import Connection
from sona_stream.transport.response import Response

FAULTS = ["none"] * 5 + ["cut before", "cut inside", "close after", "stall", "garbage", "surplus"]


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("cap", [None, 3])
def test_answers_never_cross(factory, cap):
    dice = random.Random(7)

    async def script(asked, wire):
        fault, body = dice.choice(FAULTS), asked.body * dice.randint(1, 3)
        await asyncio.sleep(dice.random() * 0.004)
        if fault in ("none", "close after", "surplus"):
            await wire.send(sized(body) if dice.random() < 0.5 else chunked(body[:3], body[3:]))
            if fault == "surplus":
                await wire.send(sized(b"nobody's"))
        elif fault == "cut inside":
            await wire.send(chunked(body, end=False))
        elif fault == "garbage":
            await wire.send(b"\x16\x03\x01 not http\r\n\r\n")
        elif fault == "stall":
            await wire.gone()
        return None if fault in ("none", "surplus") else "close"

    async def one(client, url, number):
        body = b"<%04d>" % number
        if number % 9 == 0:  # leaves before the end
            async with client.request("POST", url, (), body):
                return "left"
        async with client.request("POST", url, (), body) as response:
            got = await response.read()
        assert got
        assert got == body * (len(got) // len(body))
        return "whole"

    async def run():
        limits = Timeouts(connect=2, first_byte=0.5, idle=0.2)
        async with serving(script) as upstream, Client(timeouts=limits, max_connections=cap) as client:
            async with asyncio.timeout(10):
                done = await asyncio.gather(
                    *(one(client, upstream.url, i) for i in range(120)), return_exceptions=True
                )
            unexpected = [
                one for one in done if isinstance(one, BaseException) and not isinstance(one, UpstreamError)
            ]
            assert not unexpected
            assert done.count("whole") >= 5  # how many is for the dice and for how busy the machine is
        assert not client._pools.popitem()[1]._open

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run())


async def test_nothing_of_an_exchange_outlives_it():
    async def script(asked, wire):
        await wire.send(chunked(b"a" * 1000, end=asked.body == b"whole"))
        if asked.body != b"whole":
            await wire.gone()
            return "close"
        return None

    async with serving(script) as upstream, Client() as client:
        for i in range(60):
            async with client.request("POST", upstream.url, (), b"whole" if i % 2 else b"part") as response:
                await anext(response)
        del response
        await asyncio.sleep(0.02)
        gc.collect()
        alive = gc.get_objects()
        # Not isinstance: it asks lazy objects of other libraries for their class.
        assert sum(type(one) is Response for one in alive) == 0
        assert sum(type(one) is Connection for one in alive) <= 1, "one idle connection at most"
