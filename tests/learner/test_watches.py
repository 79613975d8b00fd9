"""What is known of more keys than fit in memory: kept, read back, counted once."""

import dataclasses

import numpy as np
import pytest
from test_watch import answer, counted, formed, learner_of, request, text, until
from toy import MemoryStore, ToyHost, World

from sona_stream.config.settings import CanarySettings, LearningSettings, ValiditySettings
from sona_stream.engine.learner import watches
from sona_stream.engine.learner.keys import AdapterKey
from sona_stream.events import AdapterRef, Score, pupil

SETTINGS = LearningSettings(replay_every=10_000, validity=ValiditySettings(answers=5, share=0.5))


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(watches, "MOST", 8)


def key_of(user):
    return f"toy/{pupil('default', user)}/*"


async def teach(world, learner, user, quality=1.0):
    request_id, _ = world.ask(user=user, adapter=learner.resolve(request(user=user)))
    return await learner.learn(world.judge(request_id, quality), wait=True)


def answered(learner, user, version, count, tokens=text, seed=0, **more):
    rng = np.random.default_rng(seed)
    adapter = AdapterRef(key=key_of(user), version=version) if version else None
    for i in range(count):
        one = answer(tokens(rng), version=0, request_id=f"{user}-{version}-{i}", user=user, **more)
        learner.observe(dataclasses.replace(one, adapter=adapter))


def in_memory(learner):
    return learner.stats()["watched"]


async def crowd(world, learner):
    """So many others teach that anna does not stay in memory."""
    for i in range(12):
        await teach(world, learner, f"u{i}")
        answered(learner, f"u{i}", 1, 2)
    await until(lambda: key_of("anna") not in in_memory(learner))


async def test_a_trial_goes_on_where_it_was_after_a_thousand_other_keys(few):
    world, loops = World(), lambda rng: [7] * 40
    async with learner_of(world, SETTINGS) as learner:
        answered(learner, "anna", 0, 20)
        await teach(world, learner, "anna")
        answered(learner, "anna", 1, 4, loops)
        before = in_memory(learner)[key_of("anna")]
        assert before["answers"] == 4
        await crowd(world, learner)
        assert (await learner.adapter(key_of("anna"), 1))["watched"] == before, "as it was, read back"
        await crowd(world, learner)
        assert learner.resolve(request(user="anna")).version == 1
        answered(learner, "anna", 1, 30, loops)
        await until(lambda: learner.resolve(request(user="anna")) is None)
        assert counted(learner, "rolled_back") == 1


async def test_what_is_said_of_a_key_that_is_not_in_memory_counts_once_it_is(few):
    world = World()
    async with learner_of(world, SETTINGS) as learner:
        await teach(world, learner, "anna")
        await crowd(world, learner)
        answered(learner, "anna", 1, 3)
        request_id, _ = world.ask(user="anna", adapter=AdapterRef(key=key_of("anna"), version=1))
        await learner.learn(world.judge(request_id, 0.5), wait=True)
        await until(lambda: key_of("anna") in in_memory(learner))
        shown = in_memory(learner)[key_of("anna")]
        assert shown["answers"] == 3
        assert shown["means"]["trial"]["rating"] == [0.5, 1]


async def test_the_bad_version_on_trial_does_not_become_the_trusted_one(few):
    world = World()
    async with learner_of(world, SETTINGS) as learner:
        for quality in (1.0, 0.0, 1.0):
            await teach(world, learner, "anna", quality)
        answered(learner, "anna", 3, 2)
        await crowd(world, learner)
        answered(learner, "anna", 3, 1)
        await until(lambda: key_of("anna") in in_memory(learner))
        assert in_memory(learner)[key_of("anna")]["reference"] == 0


async def test_a_version_whose_watch_was_lost_with_the_process_is_still_on_trial():
    world = World()
    async with learner_of(world, SETTINGS) as learner:
        for quality in (1.0, 0.0, 1.0):
            await teach(world, learner, "anna", quality)
        killed = dict(world.store.blobs)
    world.store.blobs = killed
    world.host.adapters.clear()
    assert not any("/watch/" in name for name in killed), "too little was seen to be kept before the end"
    async with learner_of(world, SETTINGS) as learner:
        assert learner.resolve(request(user="anna")).version == 3
        answered(learner, "anna", 3, 30, lambda rng: [7] * 40)
        await until(lambda: learner.resolve(request(user="anna")) is None)


async def test_what_was_shown_to_break_constrained_answers_stays_out(few):
    world = World()
    asked = [request(id=f"q{i}", user="anna", constrained=True) for i in range(50)]

    def observed(user, valid, version, count):
        for i in range(count):
            one = dataclasses.replace(formed(valid, 0), user=user, request_id=f"f{i}")
            adapter = AdapterRef(key=key_of(user), version=version) if version else None
            learner.observe(
                dataclasses.replace(one, adapter=adapter, score=Score(value=0.9, parts={"form": valid}))
            )

    async with learner_of(world, SETTINGS) as learner:
        await teach(world, learner, "anna")
        observed("anna", 1.0, 0, 20)
        observed("anna", 0.0, 1, 200)
        assert "valid in" in learner.bare_reason(asked[0])
        for i in range(12):
            await teach(world, learner, f"u{i}")
            observed(f"u{i}", 1.0, 0, 5)
        await until(lambda: len(learner._state.watches._validity._kept) <= 8)
        assert AdapterKey.parse(key_of("anna")) not in learner._state.watches._validity._kept
        for _ in range(2):
            assert {learner.resolve(one) for one in asked} == {None}, "neither while it is read nor after"
            await until(lambda: "being read" not in learner.bare_reason(asked[0]))
        assert "valid in" in learner.bare_reason(asked[0])


async def test_those_whom_nobody_taught_take_no_room_in_the_store_and_little_in_memory(few):
    world = World()
    async with learner_of(world, SETTINGS) as learner:
        for i in range(100):
            answered(learner, f"u{i}", 0, 40)
        assert len(in_memory(learner)) == 4
        assert not learner._state.watches.due
        answered(learner, "u99", 0, 1)
        await teach(world, learner, "u99")
        assert in_memory(learner)[key_of("u99")]["means"]["reference"]["score"][1] == 41, "yet it is a reference"
    assert {name for name in world.store.blobs if "/watch/" in name} == {f"learner/watch/{key_of('u99')}"}


async def test_evidence_outlives_a_disk_that_is_full_for_a_while(few, caplog):
    world = World()
    async with learner_of(world, SETTINGS) as learner:
        for i in range(12):
            await teach(world, learner, f"u{i}")
        world.store.crash_before = "put_blob"
        for i in range(12):
            answered(learner, f"u{i}", 1, 2)
        await until(lambda: counted(learner, "failures"))
        world.store.crash_before = None
        for i in range(12):
            answered(learner, f"u{i}", 1, 3)
            await until(lambda: not learner._state.watches.due)
        for i in range(12):
            assert (await learner.adapter(key_of(f"u{i}"), 1))["watched"]["answers"] == 5


# ---- once, and every kind


class Failing(MemoryStore):
    """Fails once to record an outcome, when everything else is done."""

    failures = 0

    def together(self):
        writes = super().together()
        commit = writes.commit

        async def failing():
            if self.failures and any(name == "record_outcome" for name, _, _ in writes.steps):
                self.failures -= 1
                writes.steps = []
                raise OSError("no space left")
            await commit()

        writes.commit = failing
        return writes


async def test_feedback_that_is_tried_again_is_one_rating(caplog):
    world = World(store=Failing())
    async with learner_of(world, SETTINGS) as learner:
        answered(learner, "anna", 0, 1)
        world.store.failures = 1
        request_id, _ = world.ask(user="anna")
        feedback = world.judge(request_id, 1.0)
        with pytest.raises(OSError, match="no space"):
            await learner.learn(feedback, wait=True)
        learner.retry("toy")
        await until(lambda: feedback.id in world.store.outcomes)
        shown = in_memory(learner)[key_of("anna")]
        assert shown["means"]["reference"]["rating"] == [1.0, 1]


async def test_feedback_that_waited_in_the_store_is_a_rating_and_a_lesson():
    world = World()
    async with learner_of(world, SETTINGS) as learner:
        await teach(world, learner, "anna")
    request_id, _ = world.ask(user="anna", adapter=AdapterRef(key=key_of("anna"), version=1))
    feedback = world.judge(request_id, 0.25)
    async with learner_of(world, SETTINGS) as learner:
        await until(lambda: feedback.id in world.store.outcomes)
        watch = learner._state.watches.of(AdapterKey.parse(key_of("anna")))
        assert watch.lessons == ["f-0", "f-1"]
        assert watch.view()["means"]["trial"]["rating"] == [0.25, 1]


async def test_what_scores_taught_does_not_come_back_after_a_fall():
    world = World()
    settings = LearningSettings(replay_every=10_000, keep_versions=2, canary=CanarySettings(probation=10_000))
    async with learner_of(world, settings, mode="auto") as learner:
        answered(learner, "anna", 0, 32)
        for i in range(6):
            request_id, _ = world.ask(user="anna", adapter=learner.resolve(request(user="anna")))
            await learner.learn(world.judge(request_id, float(i % 2), kind="score"), wait=True)
        assert len(await world.store.adapters(key_of("anna"))) < 6, "older versions name their lessons no more"
        answered(learner, "anna", 6, 30, lambda rng: [7] * 40)
        await until(lambda: counted(learner, "rolled_back"))
        await until(lambda: learner._state.versions.line(AdapterKey.parse(key_of("anna"))).served is None)
        ledger = await learner._state.ledger(AdapterKey.parse(key_of("anna")))
        assert all(ledger.withdrawn(f"f-{i}") for i in range(6))
        await learner.force_learn()
        assert learner.resolve(request(user="anna")) is None


async def test_going_back_by_hand_to_the_trusted_version_takes_its_successors_lessons_along():
    world = World()
    settings = LearningSettings(replay_every=10_000, keep_versions=2, canary=CanarySettings(probation=16))
    async with learner_of(world, settings) as learner:
        await teach(world, learner, "anna")
        answered(learner, "anna", 1, 20)
        for i in range(6):
            await teach(world, learner, "anna", float(i % 2))
        assert in_memory(learner)[key_of("anna")]["reference"] == 1
        await learner.rollback(key_of("anna"), 1)
        ledger = await learner._state.ledger(AdapterKey.parse(key_of("anna")))
        # The first of them came before version 1 was accepted, with the second lesson.
        assert [i for i in range(7) if ledger.withdrawn(f"f-{i}")] == [1, 2, 3, 4, 5, 6]


# ---- another model behind the same name


def another():
    return ToyHost(seed=5, fingerprint="other")


def bare(learner, count, **more):
    """Constrained answers of no version, all well formed."""
    for i in range(count):
        one = dataclasses.replace(formed(1.0, 0), user="anna", request_id=f"f{i}")
        learner.observe(dataclasses.replace(one, **more))


async def of_the_first_model(world, learner):
    """Version 1 is trusted, its form has passed, and version 2 is on trial."""
    answered(learner, "anna", 0, 32)
    await teach(world, learner, "anna")
    answered(learner, "anna", 1, 20)
    bare(learner, 20)
    bare(learner, 300, adapter=AdapterRef(key=key_of("anna"), version=1))
    await teach(world, learner, "anna", 0.0)
    answered(learner, "anna", 2, 5)
    shown = in_memory(learner)[key_of("anna")]
    assert (shown["reference"], shown["answers"], shown["constrained"]["state"]) == (1, 5, "passed")
    return shown


def as_new(learner):
    watch = learner._state.watches.of(AdapterKey.parse(key_of("anna")))
    constrained = request(user="anna", constrained=True)
    return (watch.reference, watch.undone, learner.resolve(constrained)) == (0, 2, None)


TRIALS = LearningSettings(replay_every=10_000, validity=SETTINGS.validity, canary=CanarySettings(probation=16))


@pytest.mark.parametrize("restarts", [False, True])
async def test_another_model_is_not_judged_by_what_the_first_one_answered(restarts):
    world = World()
    first = world.host
    async with learner_of(world, TRIALS) as learner:
        before = await of_the_first_model(world, learner)
        world.host = another()
        if not restarts:
            await learner.attach("toy", world.host)
            assert key_of("anna") not in in_memory(learner)
            answered(learner, "anna", 0, 40, score=0.5)
            await teach(world, learner, "anna")
            assert as_new(learner)
            assert in_memory(learner)[key_of("anna")]["means"]["reference"]["score"] == [0.5, 40]
            answered(learner, "anna", 3, 100, score=0.5)
            await until(lambda: not learner._state.watches.due)
            assert counted(learner, "rolled_back") == 0
            assert learner.resolve(request(user="anna")).version == 3
    if restarts:
        world.host = another()
        async with learner_of(world, TRIALS) as learner:
            answered(learner, "anna", 0, 40)
            bare(learner, 20)
        async with learner_of(world, TRIALS) as learner:
            assert key_of("anna") not in in_memory(learner), "nor after the next start"
        world.host = first
        async with learner_of(world, TRIALS) as learner:
            assert in_memory(learner)[key_of("anna")] == before, "the first model comes back to its own"


async def test_another_models_first_version_is_on_its_own_though_the_process_dies_before_its_watch_is_kept():
    world = World()
    async with learner_of(world, TRIALS) as learner:
        await of_the_first_model(world, learner)
    kept = dict(world.store.blobs)
    world.host = another()
    async with learner_of(world, TRIALS) as learner:
        await teach(world, learner, "anna")
        world.store.blobs = {
            name: kept[name] if "/watch/" in name or "/validity/" in name else data
            for name, data in world.store.blobs.items()
        }
        killed = dict(world.store.blobs)
    world.store.blobs = killed
    async with learner_of(world, TRIALS) as learner:
        assert learner.resolve(request(user="anna")).version == 3
        assert learner.resolve(request(user="anna", constrained=True)) is None
        watch = await learner._state.watches.ready(AdapterKey.parse(key_of("anna")))
        assert (watch.reference, watch.seen) == (0, 0)
