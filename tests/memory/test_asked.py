"""Questions of recent requests: as they were said in memory, as sketches on the disk, and never in the way."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import numpy as np
import pytest

from sona_stream.app import asked as room
from sona_stream.app.asked import AskedQuestions
from sona_stream.app.question_vectors import QuestionEmbedders
from sona_stream.episodes import Question
from sona_stream.errors import StateError
from sona_stream.events import Principal, Request


class Table:
    """An embedder that counts what it is asked."""

    name = "table"

    def __init__(self, make, dim, *, salt=""):
        self._make, self.dim, self._salt, self.calls = make, dim, salt, []

    async def embed(self, texts):
        self.calls.append(list(texts))
        return np.stack([self._make.vector(text, self.dim, salt=self._salt) for text in texts])


@pytest.fixture
def tables(make):
    return Table(make, 256), Table(make, 384, salt="c")


def request(text, id="r1", **changes):
    values = {"model": "m", "body": b"{}", "principal": Principal(tenant="acme", user="alice")} | changes
    message = {"role": "user", "content": text}
    return Request(id=id, endpoint="chat.completions", messages=(message,), **values)


@contextlib.asynccontextmanager
async def running(memory, tables, *, keep=True):
    questions = AskedQuestions(memory, QuestionEmbedders(*tables), keep=keep)
    task = asyncio.create_task(questions.run())
    try:
        yield questions
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def kept(memory, *ids):
    return [await memory.kept_question("acme", id) for id in ids]


async def test_what_is_noted_is_kept_soon(opened, make, tables):
    async with opened() as (_, memory), running(memory, tables) as questions:
        questions.note(request("What is the capital of France?"))
        questions.note(request("What is the capital of France?"))
        assert questions.get("r1") == Question("What is the capital of France?")
        assert tables[0].calls == tables[1].calls == [], "nothing is computed on a request's path"
        async with asyncio.timeout(10):
            while await kept(memory, "r1") == [None]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        record = make.record()
        assert await questions.sketch("acme", "r1") == memory.sketch(record.question, record.vectors)
        assert await questions.sketch("acme", "r2") == b""
        assert len(tables[1].calls) == 1


async def test_what_nobody_corrects_is_not_noted(opened, tables):
    async with opened() as (_, memory):
        questions = AskedQuestions(memory, QuestionEmbedders(*tables), keep=True)
        questions.note(request("", "empty"))
        questions.note(request("x" * 20_000, "long"))
        questions.note(request("  ", "blank"))
        questions.note(request("", "tokens", prompt=(1, 2, 3)))
        await questions.finish()
        assert await kept(memory, "empty", "long", "blank", "tokens") == [None] * 4
        assert questions.get("long") is None


async def test_where_text_is_kept_no_sketch_is_made(opened, tables):
    async with opened("text") as (_, memory), running(memory, tables, keep=False) as questions:
        questions.note(request("What is the capital of France?"))
        await asyncio.sleep(0.3)
        assert questions.get("r1") is not None
        assert await kept(memory, "r1") == [None]
        assert tables[0].calls == []


async def test_in_a_flood_the_newest_have_contextual_vectors_and_the_oldest_are_counted(
    opened, make, tables, monkeypatch
):
    monkeypatch.setattr(room, "_ROUND", 20)
    monkeypatch.setattr(room, "_CONTEXTUAL", 6)
    monkeypatch.setattr(room, "_WAITING", 30)
    async with opened() as (_, memory):
        questions = AskedQuestions(memory, QuestionEmbedders(*tables), keep=True)
        texts = [f"What is the price of item {i}?" for i in range(40)]
        for i, text in enumerate(texts):
            questions.note(request(text, f"r{i}"))
        assert questions.lost == 10
        await questions.finish()
        assert [sketch is None for sketch in await kept(memory, *(f"r{i}" for i in range(40)))] == [True] * 10 + [
            False
        ] * 30
        assert sum(map(len, tables[1].calls)) == 12, "six of each of two rounds"
        assert max(map(len, tables[1].calls)) <= 4
        for i, contextual in ((10, False), (29, True), (39, True), (30, False)):
            question = Question(texts[i])
            expected = memory.sketch(question, make.vectors(texts[i], contextual=contextual))
            assert await questions.sketch("acme", f"r{i}") == expected


async def test_a_question_that_cannot_be_kept_does_not_take_the_others_with_it(opened, tables, monkeypatch, caplog):
    async with opened() as (_, memory):
        questions, sketch = AskedQuestions(memory, QuestionEmbedders(*tables), keep=True), memory.sketch

        def fails(question, vectors):
            if "7" in question.text:
                raise ValueError("seven")
            return sketch(question, vectors)

        monkeypatch.setattr(memory, "sketch", fails)
        names = [f"r{i}" for i in range(40)]
        for i, name in enumerate(names):
            questions.note(request(f"What is {i}?", name, principal=Principal(tenant="acme", user=f"u{i}")))
        await questions.finish()
        lost = ["r7", "r17", "r27", "r37"]
        assert [name for name in names if await memory.kept_question("acme", name) is None] == lost
        assert questions.lost == 4
        assert "seven" in caplog.text


async def test_a_question_of_one_very_long_number_is_kept(opened, tables):
    async with opened() as (_, memory):
        questions = AskedQuestions(memory, QuestionEmbedders(*tables), keep=True)
        questions.note(request("What is " + "9" * 5000 + " million?"))
        await questions.finish()
        assert await kept(memory, "r1") != [None]
        assert questions.lost == 0


async def test_what_is_not_all_text_is_not_noted(opened, tables):
    async with opened() as (_, memory):
        questions = AskedQuestions(memory, QuestionEmbedders(*tables), keep=True)
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
        message = {"role": "user", "content": [{"type": "text", "text": "What is shown here?"}, image]}
        questions.note(dataclasses.replace(request(""), messages=(message,)))
        await questions.finish()
        assert questions.get("r1") is None
        assert await kept(memory, "r1") == [None]


async def test_a_disk_that_is_full_costs_what_could_not_be_kept_and_no_more(opened, tables, monkeypatch, caplog):
    async with opened() as (_, memory), running(memory, tables) as questions:
        put = memory.keep_questions

        async def full(kept):
            raise StateError("no space left on device")

        monkeypatch.setattr(memory, "keep_questions", full)
        questions.note(request("Who?", "r1"))
        async with asyncio.timeout(10):
            while not questions.lost:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert "no space left on device" in caplog.text
        monkeypatch.setattr(memory, "keep_questions", put)
        questions.note(request("And why?", "r2"))
        await questions.finish()
        async with asyncio.timeout(10):
            while await kept(memory, "r2") == [None]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert questions.lost == 1
