"""The memory on a request's path: it never fails a request, and knows nothing of what is not text."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest

from sona_stream.app.memory import Memories
from sona_stream.app.question_vectors import QuestionEmbedders
from sona_stream.config.settings import SonaSettings
from sona_stream.episodes import Question
from sona_stream.events import Principal, Request

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
HOST = SimpleNamespace(fingerprint="fp", holds_episode=lambda key: True)
FRANCE = "What is the capital of France?"


@pytest.fixture
def memories(make):
    def over(memory):
        def table(dim, salt=""):
            async def embed(texts):
                return [make.vector(text, dim, salt=salt) for text in texts]

            return SimpleNamespace(dim=dim, embed=embed)

        embedders = QuestionEmbedders(table(256), table(384, "c"))
        hosts = SimpleNamespace(host=lambda name: HOST)
        return Memories(memory, hosts, None, embedders, {}, SonaSettings())

    return over


def request(content, **changes):
    values = {"model": "m", "body": b"{}", "principal": Principal(tenant="acme", user="alice", key_id="k1")}
    message = {"role": "user", "content": content}
    values |= {"id": "r1", "endpoint": "chat.completions"}
    return Request(messages=(message,), **(values | changes))


@pytest.mark.parametrize("learn", [True, False])
async def test_what_is_not_all_text_is_neither_noted_nor_recalled(opened, make, memories, learn):
    async with opened("none") as (_, memory):
        key = (await memory.remember(make.record())).episode.key
        recalling = memories(memory)
        text = {"type": "text", "text": FRANCE}
        for content, expected in (([text], (key,)), ([text, IMAGE], ())):
            asked = request(content, id=f"r{len(content)}", learn=learn)
            assert recalling.concerns(asked)
            assert tuple(ref.key for ref in await recalling.recall(asked)) == expected


async def test_a_very_long_number_fails_no_request(opened, make, memories):
    async with opened("none") as (_, memory):
        text = f"{FRANCE} {'9' * 5000} million"
        key = (await memory.remember(make.record(text))).episode.key
        assert [ref.key for ref in await memories(memory).recall(request(text))] == [key]


@pytest.mark.parametrize("endpoint", ["chat.completions", "completions"])
async def test_a_very_long_text_is_not_read_at_all(opened, make, memories, endpoint, monkeypatch):
    """Whose normal form is eighteen times as long: 3 MB of it would hold up all other answers for seconds."""
    async with opened("text") as (_, memory):
        await memory.remember(make.record())
        text = "\ufdfa" * 1_000_000
        said = {"prompt": text} if endpoint == "completions" else {"messages": [{"role": "user", "content": text}]}
        asked = request("" if endpoint == "completions" else text, endpoint=endpoint, prompt=said.get("prompt"))
        recalling = memories(memory)
        monkeypatch.setattr(memory._reading.reader, "read", lambda text: pytest.fail("read"))
        assert recalling.concerns(asked)
        assert await recalling.recall(asked) == ()
        trajectory = SimpleNamespace(request_id="r1", body=json.dumps(said).encode())
        assert recalling._question(trajectory) is None


async def test_a_long_system_prompt_keeps_no_question_from_being_recalled(opened, make, memories):
    async with opened("text") as (_, memory):
        system = "Be brief, and name your sources. " * 600
        key = (await memory.remember(make.record(system=system))).episode.key
        messages = ({"role": "system", "content": system}, {"role": "user", "content": FRANCE})
        asked = dataclasses.replace(request(FRANCE), messages=messages)
        recalling = memories(memory)
        assert recalling.concerns(asked)
        assert [ref.key for ref in await recalling.recall(asked)] == [key]
        body = json.dumps({"messages": messages}).encode()
        assert recalling._question(SimpleNamespace(request_id="r2", body=body)) == Question(FRANCE, system)


async def test_nor_does_anything_else(opened, make, memories, monkeypatch, caplog):
    async with opened("none") as (_, memory):
        await memory.remember(make.record())

        def fails(*_):
            raise ValueError("what nobody thought of")

        monkeypatch.setattr(memory, "gate", fails)
        assert await memories(memory).recall(request(FRANCE)) == ()
        assert "what nobody thought of" in caplog.text
        assert "r1 is answered without" in caplog.text
