"""Feedback on an answer that is not over yet, by the upstream's own name for it."""

import asyncio
import json

import pytest
from dataplane_scripts import CHAT, DONE, END, STREAM_HEAD, answers, ask, body, piece, said
from scripted_upstream import serving
from server_clients import Raw

from sona_stream.config.load import settings_for_upstream
from sona_stream.config.settings import SonaSettings


@pytest.mark.parametrize(("named", "header"), [("c1", ()), ("mine", ("x-request-id: mine",))])
async def test_an_answer_that_streams_is_judged_when_it_has_ended(proxy, monkeypatch, named, header):
    monkeypatch.setattr("sona_stream.server.feedback._STILL_ANSWERING_S", 0.05)
    go_on = asyncio.Event()

    async def script(asked, wire):
        await wire.send(STREAM_HEAD, piece(said("a ")))
        await go_on.wait()
        await wire.send(piece(said("b") + DONE), END)

    def judge():
        return ask(it.url, json.dumps({"request_id": named, "rating": 1}).encode(), path="/v1/feedback")

    async with serving(answers(script)) as upstream:
        settings = settings_for_upstream(upstream.url, sona=SonaSettings(learning="off"))
        async with proxy(settings) as it, Raw(it.url) as raw:
            raw.post(CHAT, body(), *header)
            await raw.head()
            assert await raw.chunk() == said("a ")
            reply = await judge()
            assert (reply.status, b"still being answered" in reply.body) == (409, True)
            monkeypatch.undo()
            judging = asyncio.create_task(judge())
            go_on.set()
            assert (await judging).status in (200, 202)
            while await raw.chunk():
                pass
