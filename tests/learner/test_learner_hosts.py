"""Hosts that come late, go away, come back, and come back as another model."""

import asyncio
import dataclasses

import pytest
from toy import MemoryStore, Rates, ToyHost, World

from sona_stream.config.settings import LearningSettings
from sona_stream.engine.learner import Learner
from sona_stream.errors import CaptureGone, HostAway, NotFound
from sona_stream.events import AdapterRef, Principal, Request, RouteDecision, pupil

KEY = "toy/default/*"
INSTANT = LearningSettings(replay_every=10_000)


class FarHost(ToyHost):
    """Somewhere else; `away` means that it does not answer."""

    away = False

    def __getattribute__(self, name):
        calls = ("put_adapter", "capture", "encode", "gradient", "predicted_kl", "evaluate", "curvature")
        if name in calls and object.__getattribute__(self, "away"):
            raise HostAway("it does not answer")
        return super().__getattribute__(name)


def learner_of(store, hosts=None, expected=("toy",), settings=INSTANT, **more):
    return Learner(hosts or {}, store, Rates(), settings, "feedback", expected=expected, **more)


def request(tenant="default", model="toy", user=None):
    return Request(
        id="r", endpoint="chat.completions", model=model, body=b"{}",
        route=RouteDecision(model=model, reason="test"), principal=Principal(tenant=tenant, user=user),
    )  # fmt: skip


async def settled(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


async def test_feedback_waits_for_a_host_that_comes_late():
    world = World()
    request_id, _ = world.ask()
    async with learner_of(world.store) as learner:
        outcome = await learner.learn(world.judge(request_id, 1.0), wait=True)
        assert outcome.status == "queued"
        assert "kept" in outcome.reason
        assert world.store.outcomes == {}
        assert learner.resolve(request()) is None
        with pytest.raises(HostAway):
            await learner.rollback(KEY, 0)
        await learner.attach("toy", world.host)
        await settled(lambda: world.store.outcomes)
        assert learner.resolve(request()) == AdapterRef(key=KEY, version=1)
        assert world.host.adapters[KEY][0] == 1


async def test_one_missing_host_keeps_no_other_waiting():
    world = World()
    async with learner_of(world.store, {"toy": world.host}, expected=("toy", "missing")) as learner:
        request_id, _ = world.ask()
        assert (await learner.learn(world.judge(request_id, 1.0), wait=True)).status == "published"
        assert learner.resolve(request(model="missing")) is None
        with pytest.raises(NotFound):
            await learner.rollback("never/default/*", 0)


async def test_feedback_waits_while_the_host_is_away_and_counts_once():
    host = FarHost()
    world = World(host)
    async with learner_of(world.store, {"toy": host}) as learner:
        request_id, _ = world.ask()
        feedback = world.judge(request_id, 1.0)
        host.away = True
        assert (await learner.learn(feedback, wait=True)).status == "queued"
        assert learner.stats()["counters"].get("failures", 0) == 0
        host.away = False
        learner.retry("toy")
        await settled(lambda: world.store.outcomes)
        assert learner.stats()["accepted_feedback"][KEY] == 1
        assert learner.stats()["counters"]["steps"] == 1


async def test_a_host_that_goes_in_the_middle_of_a_step():
    """Each call in turn is the first that fails; afterwards everything is learned once."""
    for name in ("gradient", "predicted_kl", "evaluate", "put_adapter"):
        host = FarHost()
        world = World(host)
        real = getattr(host, name)

        async def fails(*_, **__):
            raise HostAway("gone")

        async with learner_of(world.store, {"toy": host}) as learner:
            request_id, _ = world.ask()
            setattr(host, name, fails)
            assert (await learner.learn(world.judge(request_id, 1.0), wait=True)).status == "queued", name
            assert learner.resolve(request()) is None
            setattr(host, name, real)
            learner.retry("toy")
            await settled(lambda world=world: world.store.outcomes)
            [outcome] = world.store.outcomes.values()
            assert learner.resolve(request()) is not None, (name, outcome)
            assert learner.stats()["accepted_feedback"][KEY] == 1


async def test_a_host_that_goes_while_two_levels_publish_gets_both_and_no_version_is_made_twice():
    host = FarHost()
    world = World(host)
    code, finer = RouteDecision(model="toy", reason="test", pattern_type="CodeGen"), "toy/default/CodeGen"
    settings = LearningSettings(replay_every=10_000, min_feedback=1)
    async with learner_of(world.store, {"toy": host}, settings=settings) as learner:

        async def taught(quality):
            request_id, _ = world.ask(route=code)
            return await learner.learn(world.judge(request_id, quality), wait=True)

        await taught(1.0)
        real = host.put_adapter

        async def goes(*_):
            host.put_adapter = real
            raise HostAway("gone")

        host.put_adapter = goes
        assert (await taught(0.0)).status == "queued"
        made = {version: record for version, record in world.store.records.items() if version[1] == 2}
        assert set(made) == {(KEY, 2), (finer, 2)}, "both are durable"
        learner.retry("toy")
        await settled(lambda: "f-1" in world.store.outcomes)
        assert learner.stats()["served"] == {KEY: 2, finer: 2}
        assert str((await taught(1.0)).adapter) == f"{finer}@3"
        assert {version: world.store.records[version].feedback_ids for version in made} == dict.fromkeys(
            made, ("f-1",)
        )


async def test_a_replay_waits_for_its_host():
    host = FarHost()
    world = World(host)
    settings = LearningSettings(replay_every=4, replay_steps=2)
    async with learner_of(world.store, {"toy": host}, settings=settings) as learner:
        for i in range(3):
            request_id, _ = world.ask()
            await learner.learn(world.judge(request_id, i % 2), wait=True)
        host.away = True
        await learner.tick()
        await learner.settle()
        assert learner.stats()["counters"].get("failures", 0) == 0
        host.away = False
        learner.retry("toy")
        await settled(lambda: learner.stats()["counters"].get("replays"))


async def test_another_model_behind_the_same_name():
    world = World()
    async with learner_of(world.store, {"toy": world.host}) as learner:
        before, _ = world.ask()
        world.store.trajectories[before] = dataclasses.replace(world.store.trajectories[before], started_at=1.0)
        request_id, _ = world.ask()
        await learner.learn(world.judge(request_id, 1.0), wait=True)
        other = ToyHost(seed=4, fingerprint="other")
        await learner.attach("toy", other)
        assert learner.resolve(request()) is None
        assert other.put_log == []
        assert learner.stats()["served"] == {}
        [problem] = learner.stats()["problems"]
        assert f"{KEY}@1 was made for toy" in problem
        assert "the model is other" in problem
        with pytest.raises(CaptureGone, match="another model"):
            await learner.learn(world.judge(before, 1.0), wait=True)
        world.host = other
        request_id, _ = world.ask()
        outcome = await learner.learn(world.judge(request_id, 1.0), wait=True)
        assert str(outcome.adapter) == f"{KEY}@2"
        assert world.store.records[KEY, 2].fingerprint == "other"


async def test_the_first_model_comes_back_with_what_it_had_learned():
    world = World()
    async with learner_of(world.store, {"toy": world.host}) as learner:
        request_id, _ = world.ask()
        await learner.learn(world.judge(request_id, 1.0), wait=True)
        await learner.attach("toy", ToyHost(seed=4, fingerprint="other"))
        again = ToyHost()
        await learner.attach("toy", again)
        assert again.put_log == [(KEY, 1)]
        assert learner.stats()["problems"] == []
        assert learner.resolve(request()) == AdapterRef(key=KEY, version=1)


async def test_pins_of_the_model_before_are_gone():
    world = World()
    async with learner_of(world.store, {"toy": world.host}) as learner:
        request_id, _ = world.ask()
        await learner.learn(world.judge(request_id, 1.0), wait=True)
        ref = AdapterRef(key=KEY, version=1)
        await learner.pin(ref)
        await learner.attach("toy", ToyHost(fingerprint="other"))
        with pytest.raises(NotFound, match="another model"):
            await learner.pin(ref)
        again = ToyHost()
        await learner.attach("toy", again)
        await learner.pin(ref)
        assert (str(ref), 1) in again.put_log


async def test_end_users_learn_apart_from_each_other_and_from_the_tenant():
    world = World(store=MemoryStore())
    async with learner_of(world.store, {"toy": world.host}) as learner:
        request_id, _ = world.ask()
        trajectory = world.store.trajectories[request_id]
        world.store.trajectories[request_id] = dataclasses.replace(trajectory, user="ann")
        outcome = await learner.learn(world.judge(request_id, 1.0), wait=True)
        key = f"toy/{pupil('default', 'ann')}/*"
        assert outcome.adapter.key == key
        assert "ann" not in key
        assert learner.resolve(request(user="ann")) == AdapterRef(key=key, version=1)
        assert learner.resolve(request(user="eve")) is None
        assert learner.resolve(request()) is None
