"""Going back and letting a canary serve: all of it or nothing, whenever the process dies, and what comes late."""

import asyncio
import dataclasses
import time

import numpy as np
import pytest
from test_watch import KEY, answer, answers, counted, formed, learner_of, request, teach, text, until
from toy import MemoryStore, ToyHost, World

from sona_stream.config.settings import CanarySettings, LearningSettings
from sona_stream.engine.learner.gates import Verdict
from sona_stream.engine.learner.keys import AdapterKey
from sona_stream.engine.learner.watch import Watch
from sona_stream.errors import HostError
from sona_stream.events import AdapterRef

KEYED = AdapterKey.parse(KEY)


def loops(rng):
    return [7] * 40


# ---- what comes late


def rated(watch, version, quality, most=200):
    """Ratings of this version until one measure fell; None: it never does."""
    for count in range(1, most + 1):
        watch.rated(version, quality)
        if watch.finding() is not None:
            return count
    return None


def test_late_ratings_of_undone_versions_say_nothing_of_their_successors():
    watch = Watch(CanarySettings(), 3)
    for _ in range(40):
        watch.rated(3, 0.9)
    assert rated(watch, 10, 0.0) is not None
    watch = watch.back_to(3, 12)
    for undone in (4, 10, 12):
        assert rated(watch, undone, 0.0) is None
        watch.answered(undone, answer([7] * 40, version=undone))
    assert (watch.answers, watch.view()["means"]["trial"]) == (0, {})
    assert rated(watch, 13, 0.0) is not None, "what came after is on trial"
    again = Watch.from_arrays(watch.to_arrays(), CanarySettings()).back_to(3, 5)
    assert rated(again, 12, 0.0) is None, "the newest undone is known after a restart, too"
    put_back = again.back_to(10, 13, trusted=True)
    for _ in range(5):
        put_back.rated(10, 0.9)
    assert put_back.view()["means"]["reference"]["rating"] == [0.9, 5], (
        "an undone version may be put in place again"
    )


def test_an_older_blob_is_read():
    watch = Watch(CanarySettings(), 2)
    for version in (2, 3, 3):
        watch.answered(version, answer(range(40), version=version))
    held = watch.to_arrays()
    held["state"] = held["state"][:4]
    del held["rated"]
    again = Watch.from_arrays(held, CanarySettings())
    assert again.view() == watch.view()
    assert (again.undone, again.lifetime) == (0, 3)
    held["state"] = np.asarray([2, 1, 2, 1, 5, 9])
    again = Watch.from_arrays(held, CanarySettings())
    assert (again.undone, again.lifetime, again.standing) == (5, 9, 0)


def test_an_answer_that_is_rated_again_is_no_other_answer_however_many_come_in_between():
    watch = Watch(CanarySettings())
    for _ in range(3):
        for i in range(2000):
            watch.rated(1, 0.5, f"a{i}")
        watch = Watch.from_arrays(watch.to_arrays(), CanarySettings())
    assert watch.view()["means"]["trial"]["rating"] == [0.5, 2000]
    held = {**watch.to_arrays(), "rated": np.asarray(["a0", "a1"])}
    old = Watch.from_arrays(held, CanarySettings())
    for answer_id in ("a0", "a1", "b"):
        old.rated(1, 0.5, answer_id)
    assert old.view()["means"]["trial"]["rating"] == [0.5, 2001], "ids that an older version kept are known"


async def test_late_ratings_do_not_undo_what_came_after_a_fall():
    world = World()
    async with learner_of(world) as learner:
        answers(learner, 0, 32)
        for _ in range(12):
            await learner.learn(world.judge(world.ask()[0], 1.0), wait=True)
        undone = learner.resolve(request())
        asked = [world.ask(adapter=undone)[0] for _ in range(30)]
        answers(learner, undone.version, 30, loops)
        await until(lambda: counted(learner, "rolled_back") == 1)
        for quality in (0.0, 1.0):
            await teach(world, learner, quality)
        for request_id in asked:
            await learner.learn(world.judge(request_id, 0.0), wait=True)
        await until(lambda: not learner._state.watches.due)
        assert counted(learner, "rolled_back") == 1
        assert learner.resolve(request()) is not None


def test_a_version_on_trial_that_is_put_back_is_on_trial_still():
    watch = Watch(CanarySettings(), 3)
    for _ in range(40):
        watch.rated(3, 0.9)
    for version in (4, 5, 6):
        watch.rated(version, 0.5)
        watch.taught(f"f{version}")
    watch = watch.back_to(5, 6)
    watch = Watch.from_arrays(watch.to_arrays(), CanarySettings())
    assert (watch.reference, watch.undone, watch.lessons) == (3, 6, ["f4", "f5", "f6"])
    for version, counts in ((3, 0), (4, 0), (6, 0), (5, 1), (7, 1)):
        before = watch.view()["means"]["trial"]["rating"][1]
        watch.rated(version, 0.5)
        assert watch.view()["means"]["trial"]["rating"][1] == before + counts, version
    assert watch.view()["means"]["reference"]["rating"][1] == 41
    watch.advance(7)
    assert rated(watch, 5, 0.0) is None


@pytest.mark.parametrize("learns_on", [True, False])
async def test_who_takes_a_lesson_back_makes_no_harmful_version_the_trusted_one(learns_on):
    world = World()
    settings = LearningSettings(replay_every=10_000, replay_steps=4)
    async with learner_of(world, settings) as learner:
        answers(learner, 0, 32)
        given = []
        for quality in (1.0, 0.0, 1.0):
            request_id, _ = world.ask()
            given.append((world.judge(request_id, quality), request_id, time.time()))
            await learner.learn(given[-1][0], wait=True)
            await asyncio.sleep(0.002)
        answers(learner, 2, 3, loops)
        for _ in range(60):
            learner.observe(formed(1.0, 0))
            learner.observe(formed(0.0, 3))
        assert learner.stats()["watched"][KEY]["constrained"]["state"] == "failed"
        feedback, request_id, at = given[-1]
        if not learns_on:
            learner._state.gate = refuse
        await learner.unlearn("toy", "default", feedback.id, request_id=request_id, given_at=at)
        await learner.settle()
        watched = learner.stats()["watched"][KEY]
        assert (watched["reference"], watched["answers"]) == (0, 3)
        assert watched["constrained"]["state"] == "failed"
        version = learner.resolve(request()).version
        assert version == (4 if learns_on else 2)
        answers(learner, version, 30, loops)
        await until(lambda: learner.resolve(request()) is None)
        ledger = await learner._state.ledger(KEYED)
        assert all(ledger.withdrawn(one.id) for one, _, _ in given), "nor do the others' lessons bring it back"


async def refuse(*_):
    return Verdict("kl", "too far", {})


# ---- whenever the process dies


@pytest.mark.parametrize("crash", ["put_adapter", "set_current", "put_blob"])
async def test_a_process_that_dies_while_going_back_has_gone_back_or_has_not(crash, caplog):
    world = World()
    async with learner_of(world) as learner:
        answers(learner, 0, 32)
        for quality in (1.0, 0.0, 1.0):
            await teach(world, learner, quality)
        await learner._state.watches.save_all()
        world.store.crash_before = crash
        answers(learner, 3, 30, loops)
        await until(lambda: counted(learner, "failures"))
        assert learner.resolve(request()) is None, "it harms nobody any more"
        assert world.store.current == {KEY: 3}
        assert {one.status for one in await world.store.adapters(KEY)} == {"published"}
    world.store.crash_before = None
    world.host.adapters.clear()
    async with learner_of(world) as learner:
        assert learner.resolve(request()).version == 3, "nothing of it was durable"
        answers(learner, 3, 30, loops)
        await until(lambda: counted(learner, "rolled_back") == 1)
    world.host.adapters.clear()
    async with learner_of(world) as learner:
        assert world.store.current == {KEY: 0}
        assert {one.status for one in await world.store.adapters(KEY)} == {"rolled_back"}
        await learner.force_learn()
        assert learner.resolve(request()) is None, "its lessons left replay with it"
        assert learner._state.watches.of(KEYED).undone == 3


@pytest.mark.parametrize("crash", ["put_adapter", "set_current"])
async def test_a_process_that_dies_while_a_canary_is_accepted_loses_nothing(crash, caplog):
    world = World()
    canary = CanarySettings(share=0.25, probation=20, least_answers=0)
    settings = LearningSettings(replay_every=10_000, canary=canary)
    async with learner_of(world, settings) as learner:
        await teach(world, learner, 1.0)
        answers(learner, 0, 20)
        answers(learner, 1, 19)
        world.store.crash_before = crash
        answers(learner, 1, 1, seed=9)
        await until(lambda: counted(learner, "failures"))
        assert world.store.records[KEY, 1].status == "canary"
    world.store.crash_before = None
    world.host.adapters.clear()
    async with learner_of(world, settings) as learner:
        assert learner.stats()["canaries"] == {KEY: 1}, "it is on trial still"
        answers(learner, 1, 20)
        await until(lambda: counted(learner, "canaries_accepted") == 1)
        assert learner.resolve(request()) == AdapterRef(key=KEY, version=1)
        assert world.store.current == {KEY: 1}


class Clinging(ToyHost):
    """Does not let go of canaries."""

    async def drop_adapter(self, key):
        if "@" in key:
            raise HostError("busy")
        await super().drop_adapter(key)


async def test_a_canary_that_its_host_does_not_drop_hinders_nothing(caplog):
    world = World(Clinging(), MemoryStore())
    canary = CanarySettings(share=0.25, probation=20, least_answers=0)
    async with learner_of(world, LearningSettings(replay_every=10_000, canary=canary)) as learner:
        for quality in (1.0, 0.0, 1.0):
            await teach(world, learner, quality)
        assert learner.stats()["canaries"] == {KEY: 3}
        await learner.rollback(KEY, 0)
        assert (learner.stats()["canaries"], world.store.current) == ({}, {KEY: 0})
        assert {one.status for one in await world.store.adapters(KEY)} == {"rolled_back"}
        for quality in (1.0, 0.0):
            await teach(world, learner, quality)
        assert learner.stats()["canaries"] == {KEY: 5}


# ---- canaries


async def test_what_follows_an_accepted_canary_is_a_canary_again():
    world = World()
    canary = CanarySettings(share=0.1, probation=20, least_answers=50)
    async with learner_of(world, LearningSettings(replay_every=10_000, canary=canary)) as learner:
        answers(learner, 0, 60)
        await teach(world, learner, 1.0)
        answers(learner, 1, 20)
        await until(lambda: counted(learner, "canaries_accepted") == 1)
        assert learner.resolve(request()) == AdapterRef(key=KEY, version=1)
        await teach(world, learner, 0.0)
        assert learner.stats()["canaries"] == {KEY: 2}
        assert world.host.adapters[KEY][0] == 1
        assert learner._state.watches.of(KEYED).lifetime == 80
    async with learner_of(world, LearningSettings(replay_every=10_000, canary=canary)) as learner:
        await teach(world, learner, 1.0)
        assert learner.stats()["canaries"] == {KEY: 3}, "known after a restart"


async def test_no_canary_is_accepted_while_publishing_is_frozen():
    world = World()
    canary = CanarySettings(share=0.25, probation=20, least_answers=0)
    async with learner_of(world, LearningSettings(replay_every=10_000, canary=canary)) as learner:
        await teach(world, learner, 1.0)
        await learner.freeze()
        answers(learner, 1, 25)
        await until(lambda: not learner._state.watches.due)
        assert learner.stats()["canaries"] == {KEY: 1}
        assert await learner._state.versions.promote(learner._state.versions.line(KEYED)) is False
        await learner.thaw()
        learner.observe(answer(text(np.random.default_rng(5)), version=1))
        await until(lambda: counted(learner, "canaries_accepted") == 1)
        assert KEY in world.host.adapters


async def on_trial(world, canary):
    """Version 1 is, when the process dies before its watch was kept."""
    async with learner_of(world, LearningSettings(replay_every=10_000, canary=canary)) as learner:
        answers(learner, 0, 60)
        await teach(world, learner, 1.0)
        assert learner.stats()["canaries"] == {KEY: 1}
        killed = dict(world.store.blobs)
    world.store.blobs = killed
    world.host.adapters.clear()


CANARY = CanarySettings(share=0.25, probation=20, least_answers=50)


async def test_where_trials_were_switched_off_the_newest_version_is_everybodys_and_the_old_canary_nobodys():
    world = World()
    await on_trial(world, CANARY)
    everybody = CanarySettings(share=1.0, probation=20, least_answers=50)
    async with learner_of(world, LearningSettings(replay_every=10_000, canary=everybody)) as learner:
        assert learner.stats()["canaries"] == {}
        for quality in (0.0, 1.0, 0.0):
            await teach(world, learner, quality)
        assert [world.store.records[KEY, one].parent for one in (2, 3, 4)] == [1, 2, 3], "nothing learned is lost"
        assert {learner.resolve(request(id=f"q{i}")).version for i in range(20)} == {4}
        answers(learner, 1, 40)
        await until(lambda: not learner._state.watches.due)
        assert world.store.current == {KEY: 4}


async def test_a_version_that_comes_while_another_is_on_trial_takes_its_place_though_the_watch_was_lost():
    world = World()
    await on_trial(world, CANARY)
    async with learner_of(world, LearningSettings(replay_every=10_000, canary=CANARY)) as learner:
        for quality in (0.0, 1.0, 0.0):
            await teach(world, learner, quality)
        assert (learner.stats()["canaries"], world.store.current) == ({KEY: 4}, {})
        answers(learner, 4, 40)
        await until(lambda: world.store.current == {KEY: 4})


async def test_a_canary_never_takes_the_place_of_a_newer_version():
    world = World()
    await on_trial(world, CANARY)
    async with learner_of(world, LearningSettings(replay_every=10_000, canary=CANARY)) as learner:
        versions = learner._state.versions
        line = versions.line(KEYED)
        old = line.candidate
        await teach(world, learner, 0.0)
        newer = dataclasses.replace(line.candidate, status="published")
        async with line.lock:
            writes = world.store.together()
            await versions.serve(line, newer, writes)
            await writes.commit()
        assert learner.stats()["canaries"] == {}, "the trial is over"
        line.candidate = old
        assert await versions.promote(line) is False
        assert world.store.current == {KEY: 2}
