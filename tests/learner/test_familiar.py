"""An adapter is for requests like those that were judged; text from elsewhere gets the bare model."""

import argparse
import inspect

import numpy as np
import pytest
import torch
from test_learner_life import learner_of, request
from toy import Rates, World

from sona_stream.config.settings import LearningSettings
from sona_stream.engine.learner import Learner
from sona_stream.engine.learner.familiar import UNFAMILIAR, apart, passages
from sona_stream.errors import UpstreamUnreachable
from sona_stream.reference import REFERENCE_TEXT
from sona_stream.store.adapters import tenant_of
from sona_stream_adapters.embedders.static import StaticEmbedder

SETTINGS = LearningSettings(replay_every=8, replay_steps=2, replay_tokens=100, familiar=12)
DIM = 6


class Sides:
    """Texts lie along the first axis, questions (see `question`) along the second."""

    name, dim = "sides", DIM

    async def embed(self, texts):
        rng = np.random.default_rng(len(texts))
        return unit(rng.standard_normal((len(texts), DIM)) * 0.2 + np.eye(DIM)[0])


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def question(number, axis=1):
    """Axis 1: a question; 0: text from elsewhere; 2: a document about something of its own."""
    about = {0: np.eye(DIM)[0], 1: np.eye(DIM)[1], 2: np.eye(DIM)[0] + np.eye(DIM)[2]}[axis]
    return unit(np.random.default_rng(number).standard_normal(DIM) * 0.2 + about)


def taught(world, settings=SETTINGS):
    return Learner({"toy": world.host}, world.store, Rates(), settings, embedder=Sides())


async def judge(world, learner, numbers, axis=1):
    for number in numbers:
        asked, _ = world.ask(embedding=question(number, axis))
        await learner.learn(world.judge(asked, 0.9 if number % 2 else 0.1), wait=True)
        await learner.settle()  # replays at the same lessons, however busy the machine is


def gets(learner, axis):
    """Whether most requests of this kind are served adapted; what is said of each goes with it."""
    asked = [request(embedding=question(number, axis)) for number in range(990, 999)]
    found = [learner.resolve(one) is not None for one in asked]
    assert [learner.bare_reason(one) for one in asked] == ["" if adapted else UNFAMILIAR for adapted in found]
    return sum(found) > len(found) / 2


async def test_what_reads_like_text_from_elsewhere_gets_the_bare_model():
    world = World()
    async with taught(world) as learner:
        await judge(world, learner, range(8))
        assert gets(learner, 0), "eight questions are too few to know"
        await judge(world, learner, range(8, 16))
        assert gets(learner, 1)
        assert not gets(learner, 0)
        assert learner.resolve(request()), "a request without an embedding is served"
        assert learner.resolve(request(embedding=np.zeros(DIM, np.float32)))
        assert not gets(learner, 2)
    async with taught(world) as learner:
        assert (gets(learner, 1), gets(learner, 0)) == (True, False), "known after a restart"
        await judge(world, learner, range(100, 116), axis=2)
        assert gets(learner, 2), "whoever wants it there judges answers there"
        assert gets(learner, 1), "what was judged before the restart still counts"
        assert not gets(learner, 0)


async def test_it_is_forgotten_with_the_tenant():
    world = World()
    async with taught(world) as learner:
        await judge(world, learner, range(16))
    names = [name for name in world.store.blobs if "toy/" in name]
    assert any(name.startswith("learner/familiar/sides/") for name in names)
    assert {tenant_of(name) for name in names} == {"default"}


async def test_a_server_of_embeddings_that_is_away_delays_it(caplog, monkeypatch):
    world = World()
    async with taught(world) as learner:
        with monkeypatch.context() as patch:
            patch.setattr(Sides, "embed", away)
            await judge(world, learner, range(16))
        assert "not known yet: gone" in caplog.text
        assert learner.stats()["counters"]["replays"] == 2
        assert gets(learner, 0)
        await judge(world, learner, range(16, 24))
        assert not gets(learner, 0)


async def away(self, texts):
    raise UpstreamUnreachable("gone")


async def test_the_same_question_again_tells_no_more():
    world = World()
    async with taught(world) as learner:
        await judge(world, learner, [1, 2] * 16)
        assert gets(learner, 0)


@pytest.mark.parametrize("off", ["setting", "embedder"])
async def test_without_it_every_request_is_served(off):
    world = World()
    settings = LearningSettings(replay_every=8, replay_steps=2, familiar=0 if off == "setting" else 12)
    making = taught(world, settings) if off == "setting" else learner_of(world, settings)
    async with making as learner:
        await judge(world, learner, range(24))
        assert gets(learner, 0)


@pytest.mark.parametrize("width", [5, 300])
def test_the_boundary_is_the_minimum_of_the_penalised_likelihood(width):
    rng = np.random.default_rng(0)
    judged, other = (rng.standard_normal((n, width)).astype(np.float32) + by for n, by in ((40, 0.5), (90, -0.5)))
    found = torch.tensor(apart(judged, other), dtype=torch.float64, requires_grad=True)
    logits = [torch.from_numpy(rows).double() @ found[:-1] + found[-1] for rows in (judged, other)]
    softplus = torch.nn.functional.softplus
    loss = 0.5 * softplus(-logits[0]).mean() + 0.5 * softplus(logits[1]).mean() + 0.005 * (found**2).sum()
    loss.backward()
    assert found.grad.abs().max() < 1e-6


async def test_on_real_text():
    """Questions that nobody judged are on the judged ones' side; prose and source code are not."""
    embedder = StaticEmbedder()
    things = [
        "bread",
        "a kite",
        "a plumber",
        "a violin",
        "a compass",
        "beehives",
        "candles",
        "a lantern",
        "a harbour",
    ]
    asked = [
        form.format(thing)
        for form in ("What is {} for?", "Why do people like {}?", "Who needs {}?")
        for thing in things
    ]
    asked += [f"How do I take care of {thing}?" for thing in things]
    boundary = apart(await embedder.embed(asked), await embedder.embed(passages(REFERENCE_TEXT)))

    async def side(texts):
        return (await embedder.embed(texts)) @ boundary[:-1] + boundary[-1] >= 0

    unseen = [
        "Who invented the telescope?",
        "What makes popcorn pop?",
        "How does a magnet work?",
        "Why is the sky blue?",
    ]
    source = inspect.getsource(argparse)
    code = [source[at : at + 800] for at in range(4000, 12000, 1000)]
    prose = [
        "The town lies on both banks of the river, some forty kilometres upstream of its mouth. It was first named "
        "in a charter of 1241 and received market rights under the duke's successor, who had the walls built.",
        "After the second season the company moved its works to the coast, where freight was cheaper. Production "
        "of the earlier models ended two years later, and the staff were offered posts at the new plant.",
    ]
    assert (await side(unseen)).all()
    assert not (await side(prose)).any()
    assert (await side(code)).mean() < 0.2
