"""Corrections of what the model before said: its token ids mean nothing to the one that is there now."""

from __future__ import annotations

import contextlib
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from sona_stream.app.memory import Memories
from sona_stream.app.question_vectors import QuestionEmbedders
from sona_stream.config.settings import SonaSettings
from sona_stream.engine.learner.tenure import answering_since
from sona_stream.events import Delta, Feedback, Finish, Head, RouteDecision, Trajectory

FRANCE = "What is the capital of France?"
OLD, NEW = (11, 12, 13), (501, 502)


class Model:
    """Host and backend of the model that is there now."""

    adaptable = True
    fingerprint = "new"

    def __init__(self, make):
        self.make, self.encoded, self.asked = make, [], []

    @property
    def host(self):
        return self

    @contextlib.asynccontextmanager
    async def __call__(self, request):
        self.asked.append(json.loads(request.body)["messages"])

        async def events():
            yield Head(model="m", prompt_ids=NEW)
            yield Delta(raw=b"never read")
            yield Finish()

        async with contextlib.aclosing(events()) as stream:
            yield stream

    async def encode(self, prompt_ids, answer, *, request_id, hidden):
        self.encoded.append((tuple(prompt_ids), answer))
        made = self.make.record(answer=str(answer))
        return SimpleNamespace(hidden=made.hidden, token_ids=made.token_ids, fingerprint=self.fingerprint)

    async def hidden_space(self):
        return self.make.space()

    async def release(self, request_id):
        pass


@pytest.fixture
def memories(make):
    """``memories(store, memory, model, storage)``"""

    def over(store, memory, model, storage):
        def table(dim, salt=""):
            async def embed(texts):
                return [make.vector(text, dim, salt=salt) for text in texts]

            return SimpleNamespace(dim=dim, embed=embed)

        embedders = QuestionEmbedders(table(256), table(384, "c"))
        hosts = SimpleNamespace(host=lambda name: model)
        return Memories(memory, hosts, store, embedders, {"m": [model]}, SonaSettings(storage=storage))

    return over


def answered(store, request_id="r1"):
    said = {"model": "m", "messages": [{"role": "user", "content": FRANCE}]}
    asked = {"request_id": request_id, "tenant": "acme", "key_id": "k1", "user": "alice", "model": "m"}
    route = RouteDecision(model="m", reason="test")
    store.submit_trajectory(
        Trajectory(
            **asked,
            route=route,
            prompt_ids=OLD,
            token_ids=(14, 15),
            body=json.dumps(said).encode(),
            outcome="complete",
            finish_reason="stop",
            started_at=time.time(),
        )
    )


def said(kind="correction", request_id="r1"):
    values = {"tenant": "acme", "key_id": "k1", "user": "alice", "kind": kind, "created_at": time.time()}
    if kind == "correction":
        return Feedback(id="f1", request_id=request_id, correction="Lyon", **values)
    return Feedback(id="f1", request_id=request_id, quality=1.0, **values)


@pytest.mark.parametrize("storage", ["features", "text"])
@pytest.mark.parametrize("kind", ["correction", "rating"])
async def test_only_text_is_made_an_episode_of_the_model_that_is_there_now(opened, make, memories, storage, kind):
    async with opened(storage) as (store, memory):
        await answering_since(store, "m", "old")
        answered(store)
        remembering = memories(store, memory, model := Model(make), storage)
        remembering._asked._asked["r1"] = make.record().question
        await answering_since(store, "m", "new")
        key = await remembering.take(said(kind))
        made = await memory.episodes()
        if (storage, kind) != ("text", "correction"):
            assert (key, made, model.encoded) == ("", [], [])
            return
        assert model.encoded == [(NEW, "Lyon")]
        assert model.asked == [[{"role": "user", "content": FRANCE}]]
        assert [(one.key, one.fingerprint, one.text.answer) for one in made] == [(key, "new", "Lyon")]
        assert make.acting(memory, FRANCE, make.viewer(fingerprint="new")) == [key]
        assert await remembering.take(said(kind)) == key
        assert len(model.encoded) == 1


@pytest.mark.parametrize("storage", ["features", "text"])
async def test_its_own_answer_is_taken_by_its_token_ids(opened, make, memories, storage):
    async with opened(storage) as (store, memory):
        for name in ("old", "new"):
            await answering_since(store, "m", name)
        answered(store)
        remembering = memories(store, memory, model := Model(make), storage)
        remembering._asked._asked["r1"] = make.record().question
        (key,) = {await remembering.take(said())}
        assert [one.key for one in await memory.episodes()] == [key]
        assert model.encoded == [(OLD, "Lyon")]
        assert model.asked == []
        np.testing.assert_array_equal(memory.states(key).token_ids, make.record(answer="Lyon").token_ids)
