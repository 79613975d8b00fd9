"""A host that comes, and feedback that comes in the meantime."""

import anyio
import numpy as np
import pytest
from test_learner_hosts import settled
from toy import MemoryStore, Rates, ToyHost, World

from sona_stream.config.settings import LearningSettings
from sona_stream.engine.learner import Learner
from sona_stream.errors import HostAway
from sona_stream.events import AdapterRef

KEY = "toy/default/*"
INSTANT = LearningSettings(replay_every=10_000)


class SlowStore(MemoryStore):
    """As one that reads thousands of adapters."""

    pause = 0.0

    async def current_versions(self):
        found = dict(self.current)
        await anyio.sleep(self.pause)
        return found


class SlowHost(ToyHost):
    pause = 0.0

    async def gradient(self, captures, signal):
        await anyio.sleep(self.pause)
        return await super().gradient(captures, signal)


async def seventh(*, early, step_takes=0.0):
    """The version that the seventh judgement made, which came while the host was given the sixth, or after."""
    world = World(host=SlowHost(), store=SlowStore())
    async with Learner({"toy": world.host}, world.store, Rates(), INSTANT, "feedback") as learner:
        for i in range(6):
            await learner.learn(world.judge(world.ask()[0], float(i % 2)), wait=True)
    world.host.adapters.clear()
    world.store.pause, world.host.pause = 0.2, step_takes
    asked, _ = world.ask()
    async with Learner({}, world.store, Rates(), INSTANT, "feedback", expected=("toy",)) as learner:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(learner.attach, "toy", world.host)
            await anyio.sleep(0.05)
            if early:
                assert (await learner.learn(world.judge(asked, 0.0), wait=True)).status == "queued"
                with pytest.raises(HostAway):
                    await learner.pin(AdapterRef(key=KEY, version=6))
        assert world.host.put_log[6:7] == [(KEY, 6)]
        if not early:
            await learner.learn(world.judge(asked, 0.0))
        await settled(lambda: len(world.store.outcomes) == 7)
        assert learner.stats()["served"] == world.store.current == {KEY: 7}
        return world.store.records[KEY, 7]


@pytest.mark.parametrize("step_takes", [0.0, 0.4])
async def test_nothing_is_taught_before_what_was_learned_is_served(step_takes):
    """A step that would end before, and one that would end after the adapters are on the host."""
    early, after = await seventh(early=True, step_takes=step_takes), await seventh(early=False)
    assert early.parent == after.parent == 6
    assert np.array_equal(early.weights.micro.lora_A, after.weights.micro.lora_A)
    assert np.array_equal(early.weights.micro.lora_B, after.weights.micro.lora_B)


async def test_a_host_that_could_not_be_given_what_was_learned_is_still_away():
    world = World(store=SlowStore())
    async with Learner({"toy": world.host}, world.store, Rates(), INSTANT, "feedback") as learner:
        await learner.learn(world.judge(world.ask()[0], 1.0), wait=True)
    world.host.adapters.clear()

    async def away(*_):
        raise HostAway("gone again")

    async with Learner({}, world.store, Rates(), INSTANT, "feedback", expected=("toy",)) as learner:
        put, world.host.put_adapter = world.host.put_adapter, away
        with pytest.raises(HostAway):
            await learner.attach("toy", world.host)
        asked, _ = world.ask()
        assert (await learner.learn(world.judge(asked, 0.0), wait=True)).status == "queued"
        world.host.put_adapter = put
        await learner.attach("toy", world.host)
        await settled(lambda: len(world.store.outcomes) == 2)
        assert learner.stats()["served"] == {KEY: 2}
