"""An answer that is judged several times is one answer: it proves as much as one, and teaches as much."""

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_learner_life import learner_of
from toy import Rates, ToyHost, World

from sona_stream.config.settings import LearningSettings
from sona_stream.engine.learner.evidence import Evidence
from sona_stream.engine.learner.keys import AdapterKey
from sona_stream.engine.learner.lessons import Lesson, LessonBook, joined
from sona_stream.engine.learner.watch import Watch
from sona_stream.events import AdapterRef, RouteDecision

ROOT = AdapterKey("toy", "default")
CODE = RouteDecision(model="toy", reason="", pattern_type="CodeGen")
SETTINGS = LearningSettings(replay_every=10_000, min_feedback=8, least_trust=0.05)
WHOLE_FIT = LearningSettings(replay_every=10_000, replay_steps=8, least_trust=1.0)


def captures_of(n, seed=0):
    world = World(ToyHost(seed))
    for _ in range(n):
        world.ask()
    return list(world.host.captures.values())


CAPTURES = captures_of(6)


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), max_size=30))
def test_several_judgements_of_an_answer_are_their_mean_where_the_newest_was(said):
    lessons = [Lesson(CAPTURES[which], q, ("*",), f"f{i}") for i, (which, q) in enumerate(said)]
    found = joined(lessons)
    assert [one.capture for one in found] == [
        one.capture for i, one in enumerate(lessons) if said[i][0] not in [which for which, _ in said[i + 1 :]]
    ]
    for one in found:
        own = [lesson for lesson in lessons if lesson.capture is one.capture]
        assert one.quality == pytest.approx(np.mean([lesson.quality for lesson in own]))
        assert one.feedback_id == own[-1].feedback_id
        assert len(own) > 1 or one is own[0], "judged once: as it is"


def test_a_book_teaches_with_opinions_and_forgets_by_feedback():
    book = LessonBook(16)
    for i, quality in enumerate((1.0, 0.0, 0.5)):
        book.add(Lesson(CAPTURES[0], quality, ("*", "General"), f"f{i}"))
    assert [one.quality for one in book.of(ROOT)] == [0.5]
    assert book.ids(ROOT) == ["f0", "f1", "f2"]
    book.forget(["f1", "f2"])
    assert [one.quality for one in book.of(ROOT)] == [1.0]


async def taught(times, seed, n=32):
    """What was learned of `n` random ratings, each of which came so often: the evidence, the advantages and scores
    of a finer level's answers, and what is served.
    """
    world, rng = World(ToyHost(seed)), np.random.default_rng(seed)
    learner = learner_of(world, SETTINGS, rates=Rates(quality_threshold=0.0))
    async with learner:
        await learner.freeze()
        asked = [world.ask(prompt=(i % 8, 3), **({"route": CODE} if i % 2 else {}))[0] for i in range(n)]
        rated = [float(rng.integers(2)) for _ in asked]
        for _ in range(times):
            for request_id, quality in zip(asked, rated, strict=True):
                await learner.learn(world.judge(request_id, quality), wait=True)
        await learner.thaw()
        await learner.settle()
        version, served = world.host.adapters[str(ROOT)]
        state, evidence = learner._state, Evidence.of(world.store.records[str(ROOT), version].moments)
        own = (await state.book(ROOT)).of(ROOT.at("CodeGen"))
        _, values, rows = state.measurements.judged(ROOT, own, 8.0)
    return evidence, values, rows, served


@pytest.mark.parametrize("seed", range(3))
async def test_random_ratings_prove_no_more_when_they_are_sent_again(seed):
    once, values, rows, served = await taught(1, seed)
    for times in (2, 3):
        again = await taught(times, seed)
        assert again[0].z == pytest.approx(once.z, abs=1e-5)
        assert again[0].trust(0.05) == pytest.approx(once.trust(0.05), abs=1e-5)
        assert again[0].ratings == once.ratings == 32
        assert again[1] == values, "what foretells a level's ratings"
        np.testing.assert_array_equal(again[2], rows)
        np.testing.assert_allclose(again[3].micro.lora_B, served.micro.lora_B, rtol=1e-4, atol=1e-7)


async def test_an_answer_is_measured_once():
    world = World()
    async with learner_of(world, SETTINGS) as learner:
        state = learner._state
        asked = [world.ask()[0] for _ in range(8)]
        for count in (1, 2):
            for request_id in asked:
                await learner.learn(world.judge(request_id, 0.8), wait=True)
            lessons = (await state.book(ROOT)).of(ROOT)
            await state.curvature(ROOT, lessons)
            measured = world.host.calls.count("curvature")
            if count == 1:
                before = measured
        assert measured == before


async def test_one_answer_condemns_no_version_however_often_it_is_rated():
    world = World()
    async with learner_of(world, SETTINGS) as learner:
        for _ in range(40):
            await learner.learn(world.judge(world.ask()[0], 0.8), wait=True)
        served = AdapterRef(key=str(ROOT), version=world.host.adapters[str(ROOT)][0])

        async def poor():
            asked, _ = world.ask(adapter=served)
            for _ in range(12):
                await learner.learn(world.judge(asked, 0.0), wait=True)

        await poor()
        watch = learner._state.watches.of(ROOT)
        assert watch.finding() is None
        assert learner.stats()["counters"].get("rolled_back", 0) == 0
        again = Watch.from_arrays(watch.to_arrays(), SETTINGS.canary)
        again.rated(served.version, 0.0, f"default-{world.asked}")
        assert again.to_arrays()["trial.rating.sums"].tolist() == watch.to_arrays()["trial.rating.sums"].tolist()
        for _ in range(11):
            await poor()
        await anyio.wait_all_tasks_blocked()
        assert learner.stats()["counters"]["rolled_back"] == 1, "several answers do"


async def test_the_gates_look_at_an_answer_once():
    seen = []

    class Watched(ToyHost):
        async def evaluate(self, captures, weights):
            seen.append([one.request_id for one in captures])
            return await super().evaluate(captures, weights)

    world = World(Watched())
    async with learner_of(world, WHOLE_FIT) as learner:
        asked = [world.ask(**({"route": CODE} if i % 2 else {}))[0] for i in range(12)]
        for quality in (1.0, 0.9, 0.1):
            for request_id in asked:
                await learner.learn(world.judge(request_id, quality), wait=True)
        await learner.force_learn()
    assert len(seen) > 12
    assert all(len(ids) == len(set(ids)) for ids in seen)


async def test_an_answer_is_counted_and_stepped_on_once_for_each_opinion_of_it():
    world = World()
    async with learner_of(world, WHOLE_FIT) as learner:
        for i in range(4):
            await learner.learn(world.judge(world.ask(prompt=(i, 2))[0], 0.5), wait=True)
        asked, _ = world.ask(route=CODE)
        outcomes = [await learner.learn(world.judge(asked, 0.0), wait=True) for _ in range(16)]
        assert [one.status for one in outcomes] == ["published"] + ["accepted"] * 15
        assert outcomes[-1].reason == "the same was said of this answer before"
        ledger = await learner._state.ledger(ROOT)
        assert ledger.counts["CodeGen"] == ledger.unfolded["CodeGen"] == 1
        assert ledger.baseline.tenant.n == 5
        changed = world.judge(asked, 1.0)
        assert (await learner.learn(changed, wait=True)).status == "published"
        assert ledger.counts["CodeGen"] == 2
        book = await learner._state.book(ROOT)
        assert len(book) == 4 + 17, "whoever said it may take it back"
        for one in list(world.store.feedbacks.values())[4:]:
            await learner.unlearn("toy", "default", one.id, request_id=asked, given_at=one.created_at)
            left = len({world.store.feedbacks[other.feedback_id].quality for other in book}) - 1
            assert ledger.counts["CodeGen"] == left
        assert ledger.counts == {"*": 4, "General": 4, "CodeGen": 0}
        assert ledger.baseline.tenant.n == 4
