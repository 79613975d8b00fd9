"""What does not fit in memory is in the store, and nobody can tell from what is learned or served."""

import dataclasses
import logging

import numpy as np
import pytest
from toy import Rates, ToyHost, World

from sona_stream.budgets import BoundedHost, BudgetKeeper
from sona_stream.config.settings import LearningSettings
from sona_stream.engine.learner import Learner
from sona_stream.errors import HostAway, HostError
from sona_stream.events import AdapterRef, Principal, Request, RouteDecision

TENANTS = [f"t{i}" for i in range(6)]
ROUTE = RouteDecision(model="toy", reason="test", pattern_type="CodeGen", pattern="p1")


class SmallHost(ToyHost):
    """Holds three adapters."""

    most = 3

    async def put_adapter(self, key, version, weights):
        await super().put_adapter(key, version, weights)
        self.adapters[key] = self.adapters.pop(key)
        while len(self.adapters) > self.most:
            del self.adapters[next(iter(self.adapters))]

    def holds_adapter(self, key):
        return key in self.adapters


def learner_of(world, *, small, **settings):
    values = {"replay_every": 10_000, "min_feedback": 4, **settings}
    learner = Learner({"toy": world.host}, world.store, Rates(), LearningSettings(**values))
    if small:
        learner._state.versions.shelf.max_bytes = 1
        learner._state.books._max_bytes = 1
    return learner


def request(tenant, **more):
    who = Principal(tenant=tenant)
    return Request(
        id="r", endpoint="chat.completions", model="toy", body=b"{}", route=ROUTE, principal=who, **more
    )  # fmt: skip


async def taught(world, learner, *, rounds=8):
    outcomes = []
    for i in range(rounds):
        for tenant in TENANTS:
            ref = learner.resolve(request(tenant))
            if ref is not None and not learner.at_hand(request(tenant), ref):
                await learner.bring(request(tenant), ref)
            request_id, _ = world.ask(tenant, prompt=(i, i + 1), route=ROUTE, adapter=ref)
            outcomes.append(await learner.learn(world.judge(request_id, float(i % 2), tenant=tenant), wait=True))
            await learner.settle()
    return outcomes


def everything(store):
    return {
        name: (one.weights.micro.lora_A, one.weights.micro.lora_B, *map(one.moments.get, sorted(one.moments)))
        for name, one in store.records.items()
    }


async def test_what_is_learned_and_served_does_not_depend_on_memory(caplog):
    assert isinstance(SmallHost(), BoundedHost)
    assert not isinstance(ToyHost(), BoundedHost)
    worlds = {False: World(), True: World(host=SmallHost())}
    caplog.set_level(logging.WARNING)
    for small, world in worlds.items():
        async with learner_of(world, small=small) as learner:
            await taught(world, learner)
            assert isinstance(learner, BudgetKeeper)
            adapters, lessons, watches = learner.budgets()
            assert learner.stats()["budgets"] == [dataclasses.asdict(one) for one in (adapters, lessons, watches)]
            assert watches.items >= 3 * len(TENANTS)
            assert (watches.evictions, watches.nbytes < watches.limit) == (0, True)
            if small:
                assert adapters.items == adapters.nbytes == 0
                assert adapters.evictions > 50
                assert lessons.items == 1
                assert lessons.evictions > 30
                assert learner.stats()["counters"]["adapters_brought"] > 20
                assert len(world.host.adapters) == 3
            else:
                assert adapters.evictions == lessons.evictions == 0
                assert adapters.items == 3 * len(TENANTS)
    plain, tight = (everything(worlds[small].store) for small in (False, True))
    assert plain.keys() == tight.keys()
    assert len(plain) > 50
    for name, arrays in plain.items():
        for one, other in zip(arrays, tight[name], strict=True):
            np.testing.assert_array_equal(one, other, err_msg=str(name))
    told = [record.message for record in caplog.records if "is full" in record.message]
    assert len(told) == 2, told  # once for each bound
    assert all("sona-stream capacity" in line for line in told)


async def test_replays_and_consolidations_of_what_left_memory_go_on():
    world = World(host=SmallHost())
    async with learner_of(world, small=True, replay_every=4, replay_steps=3, base_steps=2) as learner:
        await taught(world, learner, rounds=6)
        told = await learner.force_learn()
        counters = learner.stats()["counters"]
        assert "status: completed" in told
        assert counters["replays"] >= len(TENANTS)
        assert not counters.get("failures")
        assert not counters.get("host_errors")
        assert learner.budgets()[0].nbytes == 0
    whole = {record.key for record in world.store.records.values() if record.weights.base is not None}
    assert len(whole) == counters["consolidations"] > 0


async def test_at_a_start_the_newest_are_put_on_the_host_and_the_others_when_asked_for():
    world = World()
    async with learner_of(world, small=False) as learner:
        await taught(world, learner, rounds=5)
        served = learner.stats()["served"]
    world.host = SmallHost()
    world.host.most = 10**6
    async with learner_of(world, small=True) as learner:
        assert learner.stats()["served"] == served
        assert len(world.host.adapters) == 1  # the newest always
        assert learner.budgets()[0].nbytes == 0
        for tenant in TENANTS:
            ref = learner.resolve(request(tenant))
            assert ref == AdapterRef(key=f"toy/{tenant}/pattern:p1", version=served[f"toy/{tenant}/pattern:p1"])
            if not learner.at_hand(request(tenant), ref):
                await learner.bring(request(tenant), ref)
            version, weights = world.host.adapters[ref.key]
            kept = await world.store.adapter(ref.key, ref.version)
            assert version == ref.version
            np.testing.assert_array_equal(weights.micro.lora_B, kept.weights.micro.lora_B)
            await learner.bring(request(tenant), ref)  # is there: nothing is put again
        assert len(world.host.put_log) == len(TENANTS)
    world.host = ToyHost()  # one that cannot be asked is given all
    async with learner_of(world, small=True) as learner:
        assert set(world.host.adapters) == set(served)


async def test_what_cannot_be_read_any_more_gives_way_to_the_next_coarser_level(caplog):
    world = World(host=SmallHost())
    async with learner_of(world, small=True) as learner:
        await taught(world, learner, rounds=6)
        asked = request("t0")
        for group in ("pattern:p1", "CodeGen", "*"):
            ref = learner.resolve(asked)
            assert ref.key == f"toy/t0/{group}"
            world.host.adapters.clear()
            del world.store.records[ref.key, ref.version]
            await learner.bring(asked, ref)
            assert "is answered without adapter" in caplog.text
        assert learner.resolve(asked) is None
        assert learner.stats()["counters"]["adapters_missing"] == 3
        assert len(learner.stats()["problems"]) == 3


@pytest.mark.parametrize("away", [True, False])
async def test_a_host_that_refuses_costs_the_adapter_and_one_that_is_away_the_answer(away, monkeypatch):
    world = World(host=SmallHost())
    async with learner_of(world, small=True) as learner:
        await taught(world, learner, rounds=2)
        asked, ref = request("t0"), learner.resolve(request("t0"))
        world.host.adapters.clear()

        async def refuse(key, version, weights):
            raise HostAway("gone") if away else HostError("full")

        monkeypatch.setattr(world.host, "put_adapter", refuse)
        if away:
            with pytest.raises(HostAway):
                await learner.bring(asked, ref)
        else:
            await learner.bring(asked, ref)
            assert learner.stats()["counters"]["adapters_missing"] == 1
        assert learner.resolve(asked) == ref  # the next request tries again
        monkeypatch.undo()
        await learner.bring(asked, ref)
        assert learner.at_hand(asked, ref)


async def test_pinned_versions_and_rollbacks_find_their_way_back():
    world = World(host=SmallHost())
    async with learner_of(world, small=True) as learner:
        await taught(world, learner, rounds=3)
        key = "toy/t0/*"
        pinned = await learner.pin(AdapterRef(key=key, version=1))
        world.host.adapters.clear()
        assert not learner.at_hand(request("t0"), pinned)
        await learner.bring(request("t0"), pinned)
        assert world.host.adapters[f"{key}@1"][0] == 1
        await learner.rollback(key, 1)
        world.host.adapters.clear()
        ref = learner.resolve(request("t0"))
        assert ref == AdapterRef(key=key, version=1)
        await learner.bring(request("t0"), ref)
        assert world.host.adapters[key][0] == 1
        await learner.rollback(key, 0)
        assert learner.resolve(request("t0")) is None
        await learner.bring(request("t0"), ref)  # resolved a moment ago: it stays away
        assert key not in world.host.adapters
