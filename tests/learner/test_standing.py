"""A finer level serves where its own lessons tell more of it than everybody's do."""

import numpy as np
import pytest
from test_learner_life import learner_of, request
from toy import ToyHost, World

from sona_stream.config.settings import LearningSettings
from sona_stream.engine.learner.standing import foretold
from sona_stream.events import RouteDecision
from sona_stream.lora import Spectrum

FLAT = Spectrum(np.eye(16, dtype=np.float32), np.ones(16, np.float32), 0.0)
LIKED, OTHERS = [1, 2, 3], [7, 8, 9]
FACTUAL = RouteDecision(model="toy", reason="", pattern_type="Factual")
CODE = RouteDecision(model="toy", reason="", pattern_type="CodeGen")


def lessons(rng, own_taste, everybodys, own=40, rest=80, d=16):
    """Advantages, scores and which of them are the level's: ratings follow a direction of the scores, and noise."""
    scores = rng.standard_normal((own + rest, d)).astype(np.float32)
    mask = np.arange(own + rest) < own
    taste = np.where(mask[:, None], own_taste, everybodys)
    return list((scores * taste).sum(1) + 2 * rng.standard_normal(own + rest)), list(scores), list(mask)


@pytest.mark.parametrize(("share", "better"), [(1.0, "all"), (-1.0, "own")])
def test_ratings_are_foretold_by_those_who_share_the_taste(share, better):
    taste = np.eye(16)[0]
    told = [foretold(*lessons(np.random.default_rng(i), taste, share * taste), FLAT, 0.03) for i in range(40)]
    own, everybody = np.median(told, axis=0)
    assert (everybody > own) if better == "all" else (own > 0 > everybody)


def test_the_lesson_itself_foretells_nothing():
    """Ratings without any connection: the correlation has no direction, though each lesson fits itself."""
    rng = np.random.default_rng(0)
    told = [foretold(*lessons(rng, np.zeros(16), np.zeros(16)), FLAT, 0.03) for _ in range(200)]
    assert np.abs(np.mean(told, axis=0)).max() < 0.06


def test_equal_ratings_foretell_nothing():
    _, scores, own = lessons(np.random.default_rng(0), np.zeros(16), np.zeros(16))
    assert foretold([0.5] * len(scores), scores, own, FLAT, 0.03) == (0.0, 0.0)


async def served_after(code_liked, *, settings):
    """Keys that a request of either type uses, after 96 judgements of factual answers and 72 of code."""
    world = World(ToyHost(0))
    async with learner_of(world, settings) as learner:
        for i in range(168):
            route, liked = (CODE, code_liked) if i % 7 in (1, 3, 5) else (FACTUAL, LIKED)
            asked, tokens = world.ask(prompt=(i % 9, i % 5, 4), route=route)
            await learner.learn(world.judge(asked, min(1.0, 2 * float(np.isin(tokens, liked).mean()))), wait=True)
            await learner.settle()  # replays at the same lessons, however busy the machine is
        found = [learner.resolve(request(pattern_type=one)).key for one in ("Factual", "CodeGen")]
        served = set(learner.stats()["served"])
        if found[1] != "toy/default/CodeGen":
            await only_its_replays_teach_it("toy/default/CodeGen", learner, world, code_liked)
    async with learner_of(world, settings) as learner:
        assert found == [learner.resolve(request(pattern_type=one)).key for one in ("Factual", "CodeGen")]
    return found, served


async def only_its_replays_teach_it(key, learner, world, liked):
    """A step of a level that does not serve would be seen by nobody."""
    before = learner.stats()["served"]
    asked, tokens = world.ask(prompt=(1, 2, 4), route=CODE)
    told = await learner.learn(world.judge(asked, 0.9 if np.isin(tokens, liked).mean() < 0.5 else 0.1), wait=True)
    after = learner.stats()["served"]
    assert told.status == "published"
    assert told.adapter.key == "toy/default/*"
    assert after["toy/default/*"] != before["toy/default/*"]
    assert after[key] == before[key]


SETTINGS = LearningSettings(min_feedback=16, replay_every=8, replay_steps=4, replay_tokens=200)


async def test_one_taste_is_served_by_the_level_that_saw_most_of_it():
    """The finer level goes on learning; it only does not serve. Both are known after a restart."""
    found, served = await served_after(LIKED, settings=SETTINGS)
    assert found[1] == "toy/default/*"
    assert "toy/default/CodeGen" in served


async def test_another_taste_is_served_by_its_own_level():
    found, _ = await served_after(OTHERS, settings=SETTINGS)
    assert found[1] == "toy/default/CodeGen"
