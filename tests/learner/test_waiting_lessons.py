"""Lessons that wait for a replay: as durable as the lessons themselves, and asked for once."""

import json
import time

from toy import MemoryStore, Rates, World

from sona_stream.config.settings import LearningSettings
from sona_stream.engine.learner import AdapterKey, Learner
from sona_stream.engine.learner.gates import Verdict
from sona_stream.engine.learner.ledger import Ledger
from sona_stream.errors import HostError
from sona_stream.events import AdapterRef

KEY = "toy/default/*"
SETTINGS = LearningSettings(replay_every=4, replay_steps=4)


async def remember(feedback):
    return "ep" if feedback.kind == "correction" else ""


def learner_of(world, settings=SETTINGS, **more):
    return Learner({"toy": world.host}, world.store, Rates(), settings, "feedback", remember=remember, **more)


async def correct(world, learner, text="abc"):
    feedback = world.judge(world.ask()[0], None, kind="correction", correction=text)
    assert (await learner.learn(feedback, wait=True)).status == "accepted"
    return feedback


async def rate(world, learner, quality):
    feedback = world.judge(world.ask()[0], quality)
    await learner.learn(feedback, wait=True)
    return feedback


async def test_what_was_taught_while_frozen_is_replayed_after_a_restart_and_named():
    world = World()
    async with learner_of(world) as learner:
        await learner.freeze()
        taught = [await correct(world, learner) for _ in range(5)]
        await learner.settle()
        assert learner.stats()["served"] == {}
    async with learner_of(world) as learner:
        await learner.settle()
        assert learner.stats()["served"] == {}
        await learner.thaw()
        await learner.settle()
        assert learner.stats()["served"] == {KEY: 1}
        assert set(world.store.records[KEY, 1].feedback_ids) == {one.id for one in taught}
        await learner.rollback(KEY, 0)
        assert all(
            learner._state.ledgers[root].withdrawn(one.id) for one in taught for root in learner._state.ledgers
        )


async def test_fewer_than_make_a_replay_due_wait_for_whoever_asks_even_after_a_restart():
    for asks in (Learner.tick, Learner.force_learn):
        world = World()
        async with learner_of(world) as learner:
            await correct(world, learner)
            await learner.settle()
            assert learner.stats()["served"] == {}
        async with learner_of(world) as learner:
            await learner.settle()
            assert learner.stats()["served"] == {}
            await asks(learner)
            await learner.settle()
            assert learner.stats()["served"] == {KEY: 1}


async def test_every_person_whose_lessons_wait_is_known_when_the_host_comes():
    world = World()
    async with learner_of(world) as learner:
        await learner.freeze()
        for tenant in ("a", "b"):
            for _ in range(4):
                asked, _ = world.ask(tenant)
                told = world.judge(asked, None, tenant=tenant, kind="correction", correction="abc")
                await learner.learn(told, wait=True)
        await learner.thaw()
        await learner.freeze()
    hosts = {"toy": world.host}
    async with Learner({}, world.store, Rates(), SETTINGS, "feedback", expected=("toy",)) as learner:
        await learner.thaw()
        await learner.attach("toy", hosts["toy"])
        await learner.settle()
        assert learner.stats()["served"] == {"toy/a/*": 1, "toy/b/*": 1}


async def test_a_refit_that_no_gate_lets_through_is_tried_again_after_as_many_lessons(caplog):
    async def refuse(*_):
        return Verdict("kl", "too far", {})

    world = World()
    async with learner_of(world) as learner:
        learner._state.gate = refuse
        for i in range(11):
            await (correct(world, learner) if i % 2 else rate(world, learner, 0.0))
            await learner.settle()
        assert learner.stats()["served"] == {}
        assert learner.stats()["counters"]["replays"] == 2
        [ledger] = learner._state.ledgers.values()
        assert len(ledger.news["*"]) == 11, "a version that passes will name them all"
        assert ledger.unreplayed["*"] == 3


async def test_a_replay_that_the_host_refuses_is_not_asked_for_at_every_lesson(caplog):
    world = World()
    asked = []

    async def refuses(*_):
        asked.append(1)
        raise HostError("no")

    async with learner_of(world) as learner:
        world.host.gradient = refuses
        for _ in range(11):
            await correct(world, learner)
            await learner.settle()
        assert len(asked) == 2
        del world.host.gradient
        await learner.tick()
        await learner.settle()
        assert learner.stats()["served"] == {KEY: 1}
        assert len(world.store.records[KEY, 1].feedback_ids) == 11


async def test_what_comes_while_a_replay_runs_waits_for_the_next(monkeypatch):
    world, during = World(), []
    real = world.host.gradient

    async def gradient(captures, signal):
        while len(during) < 2:
            during.append(world.judge(world.ask()[0], None, kind="correction", correction="abc"))
            await learner.learn(during[-1])
        return await real(captures, signal)

    async with learner_of(world) as learner:
        first = [await correct(world, learner) for _ in range(3)]
        world.host.gradient = gradient
        first.append(await correct(world, learner))
        await learner.settle()
        assert set(world.store.records[KEY, 1].feedback_ids) == {one.id for one in first}
        assert learner.stats()["counters"]["replays"] == 1
        await learner.tick()
        await learner.settle()
        assert set(world.store.records[KEY, 2].feedback_ids) == {one.id for one in during}
        assert await learner.pin(AdapterRef(key=KEY, version=2))


async def test_what_waited_when_somebody_went_back_makes_no_replay_due_nor_does_it_after_a_restart():
    world = World()
    async with learner_of(world) as learner:
        for _ in range(2):
            await correct(world, learner)
            await learner.tick()
            await learner.settle()
        waiting = await correct(world, learner)
        await learner.rollback(KEY, 1)
        await learner.tick()
        await learner.settle()
        assert learner.stats()["served"] == {KEY: 1}
    async with learner_of(world) as learner:
        await learner.tick()
        await learner.settle()
        assert learner.stats()["served"] == {KEY: 1}
        assert waiting.id in await learner._state.book(AdapterKey("toy", "default")), "it is for the next one"


async def test_a_ledger_full_of_patterns_and_waiting_lessons_holds_the_event_loop_for_moments_only():
    store, ledger = MemoryStore(), Ledger(AdapterKey("toy", "default"), 8.0)
    for n in range(4096):
        ledger.count(f"f{n}", ("*", "Factual", f"pattern:{n:032x}"), (n % 11) / 10)
    for n in range(100):
        ledger.note([f"{n:04d}-{i:031d}" for i in range(256)], [f"pattern:{n:032x}"], keep=256)
    await ledger.save(store)
    data = json.loads(store.blobs[ledger.blob()[0]])

    def shortest(call):
        spent = []
        for _ in range(5):
            begun = time.perf_counter()
            call()
            spent.append(time.perf_counter() - begun)
        return min(spent)

    assert shortest(ledger.blob) < 0.5 * shortest(lambda: json.dumps(data))
    again = await Ledger.load(store, ledger.root, 8.0)
    await again.save(store)
    saved = json.loads(store.blobs[ledger.blob()[0]])
    assert saved == {**data, "counted": []}, "whether it is settled is what the store knows"
    assert again.baseline.advantage(0.7, "pattern:" + "0" * 32) == ledger.baseline.advantage(
        0.7, "pattern:" + "0" * 32
    )
