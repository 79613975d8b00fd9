"""What one feedback writes: two commits, with nothing half there whichever of them never comes."""

import asyncio

import numpy as np
import pytest
from test_learner_life import learner_of, same, until
from toy import MemoryWrites, ToyHost, World

from sona_stream.config.settings import LearningSettings, SonaSettings
from sona_stream.engine.learner.keys import chain
from sona_stream.engine.learner.line import Line, in_order
from sona_stream.errors import HostError
from sona_stream.events import RouteDecision
from sona_stream.store import SqliteStore, create_store, maintenance
from sona_stream.store.together import SqliteWrites

ROUTE = RouteDecision(model="toy", reason="", pattern_type="CodeGen", pattern="p1")
LEVELS = [str(key) for key in chain("toy", "default", ROUTE)]
THREE = LearningSettings(min_feedback=3, replay_every=10_000)


async def teach(world, learner, quality):
    request_id, _ = world.ask(route=ROUTE)
    return await learner.learn(world.judge(request_id, quality), wait=True)


async def taught(world, learner):
    """All three levels serve."""
    for i in range(4):
        await teach(world, learner, float(i % 2))
    assert set(world.store.current) == set(LEVELS)


@pytest.mark.parametrize("crash", ["put_capture", "put_adapter", "set_current", "put_blob", "record_outcome"])
async def test_a_crash_leaves_every_level_to_be_finished(crash, caplog):
    async def run(crashing):
        world = World()
        async with learner_of(world, THREE) as learner:
            await taught(world, learner)
            before = dict(world.store.current)
            request_id, _ = world.ask(route=ROUTE)
            fifth = world.judge(request_id, 0.0)
            world.store.crash_before = crash if crashing else None
            if crashing:
                with pytest.raises(ConnectionAbortedError):
                    await learner.learn(fifth, wait=True)
                assert world.store.current == before
                assert fifth.id not in world.store.outcomes
                made = [one for one in world.store.records.values() if fifth.id in one.feedback_ids]
                first = crash in ("put_capture", "put_adapter")
                assert [one.key for one in made] == ([] if first else LEVELS)
                assert (fifth.id in world.store.kept[LEVELS[-1]]) is not first
            else:
                await learner.learn(fifth, wait=True)
        world.store.crash_before = None
        world.host.adapters.clear()
        async with learner_of(world, THREE) as learner:
            await learner.settle()
            return world, world.store.outcomes[fifth.id], learner.stats()

    plain, crashed = await run(False), await run(True)
    assert crashed[1].adapter == plain[1].adapter
    assert crashed[0].store.current == plain[0].store.current
    assert crashed[2]["accepted_feedback"] == plain[2]["accepted_feedback"]
    assert crashed[2]["rewards"] == plain[2]["rewards"]
    for level in LEVELS:
        version, weights = crashed[0].host.adapters[level]
        assert version == plain[0].host.adapters[level][0]
        assert same(weights, plain[0].host.adapters[level][1])


@pytest.mark.parametrize("crash", ["put_capture", "put_adapter", "set_current", "put_blob", "record_outcome"])
async def test_what_failed_is_finished_without_a_restart(crash, caplog, monkeypatch):
    monkeypatch.setattr("sona_stream.engine.learner.inbox._FIRST_PAUSE_S", 0.05)
    world = World()
    async with learner_of(world, THREE) as learner:
        await taught(world, learner)
        before = dict(world.store.current)
        world.store.crash_before = crash
        feedback = world.judge(world.ask(route=ROUTE)[0], 0.0)
        with pytest.raises(ConnectionAbortedError):
            await learner.learn(feedback, wait=True)
        world.store.crash_before = None
        await until(lambda: feedback.id in world.store.outcomes)
        assert world.store.current == {level: version + 1 for level, version in before.items()}
        assert {level: world.host.adapters[level][0] for level in LEVELS} == world.store.current
        assert learner.stats()["accepted_feedback"][LEVELS[0]] == 5


async def test_a_level_that_the_host_refuses_leaves_the_others_alone(caplog):
    class Picky(ToyHost):
        refused = ""

        async def put_adapter(self, key, version, weights):
            if key == self.refused:
                raise HostError("refused")
            await super().put_adapter(key, version, weights)

    world = World(Picky())
    async with learner_of(world, THREE) as learner:
        await taught(world, learner)
        before = dict(world.store.current)
        world.host.refused = LEVELS[2]
        outcome = await teach(world, learner, 0.0)
        assert outcome.adapter.key == LEVELS[1]
        assert world.store.current == {level: version + (level != LEVELS[2]) for level, version in before.items()}
        world.host.refused = ""
        again = await teach(world, learner, 0.0)
        assert (again.adapter.key, again.adapter.version) == (LEVELS[2], before[LEVELS[2]] + 2)


async def test_a_newborn_level_begins_where_this_lesson_has_brought_its_parent(monkeypatch):
    """All are published at once but for that."""
    world, commits = World(), []
    commit = MemoryWrites.commit

    async def counted(writes):
        commits.append([name for name, _, _ in writes.steps])
        await commit(writes)

    monkeypatch.setattr(MemoryWrites, "commit", counted)
    async with learner_of(world, THREE) as learner:
        for i in range(2):
            await teach(world, learner, float(i % 2))
        commits.clear()
        await teach(world, learner, 1.0)
        births = [names for names in commits if names == ["put_blob"]]
        assert len(births) == 2, "when a level began is durable before the level"
        assert [names.count("put_adapter") for names in commits if names not in births] == [1, 1, 1, 0]
        child, parent = (world.store.records[level, 1] for level in LEVELS[2:0:-1])
        assert np.linalg.norm(child.weights.micro.lora_A - parent.weights.micro.lora_A) < 0.2 * np.linalg.norm(
            parent.weights.micro.lora_A
        )
        commits.clear()
        await teach(world, learner, 0.0)
        assert [names.count("put_adapter") for names in commits] == [3, 0]
        assert commits[1].count("set_current") == 3
        assert commits[1][-2:] == ["put_blob", "record_outcome"]


async def test_two_commits_on_a_real_disk_and_one_where_nothing_is_served(tmp_path, monkeypatch):
    commits, commit = [], SqliteWrites.commit

    async def counted(writes):
        commits.append(len(writes._steps) + len(writes._outcomes))
        await commit(writes)

    monkeypatch.setattr(SqliteWrites, "commit", counted)
    async with create_store(SonaSettings(learner=THREE), directory=tmp_path / "state") as store:
        assert isinstance(store, SqliteStore)
        world = World()

        async def said(quality):
            request_id, _ = world.ask(route=ROUTE)
            store.submit_trajectory(world.store.trajectories[request_id])
            feedback = await store.commit_feedback(world.judge(request_id, quality))
            commits.clear()
            return await learner.learn(feedback, wait=True)

        kept, world_of = world.store, World(world.host)
        world_of.store = store
        async with learner_of(world_of, THREE) as learner:
            for i in range(6):
                outcome = await said(float(i % 2))
            assert len([size for size in commits if size]) == 2
            assert outcome == await store.outcome(outcome.feedback_id)
            assert await store.current_versions() == {level: world.host.adapters[level][0] for level in LEVELS}
            await learner.freeze()
            outcome = await said(1.0)
            assert outcome.status == "accepted"
            assert [size for size in commits if size] == [1 + 1 + 1]
        assert kept.current == {}
        rows = await store.captures(LEVELS[-1], limit=100)
        assert len(rows) == 7


@pytest.mark.parametrize("refused", [False, True])
async def test_a_version_is_on_its_way_to_the_disk_while_it_is_judged(tmp_path, refused):
    folder = tmp_path / "state"
    there = []

    class Judging(ToyHost):
        async def evaluate(self, captures, weights):
            await store._open().write(lambda c: None)  # whatever came before it is done
            there.append(sorted(path.name[:2] for path in (folder / "adapters").rglob("*.safetensors")))
            return await super().evaluate(captures, weights)

    limits = {"max_delta_ratio": 1e-9} if refused else {}
    async with create_store(SonaSettings(learner=THREE), directory=folder) as store:
        world = World(Judging())
        asked, world.store = world.store, store
        async with learner_of(world, LearningSettings(replay_every=10_000, **limits)) as learner:
            world.store, told = asked, []
            for i in range(2):
                request_id, _ = world.ask()
                store.submit_trajectory(asked.trajectories[request_id])
                feedback = await store.commit_feedback(world.judge(request_id, float(i)))
                told.append((await learner.learn(feedback, wait=True)).status)
        assert maintenance.verify(folder).orphans == ()
        kept = [one.version for one in await store.adapters()]
    if refused:
        assert (told, there, kept) == (["gated", "gated"], [["v1"], ["v1"]], [])
    else:
        assert (told, there, kept) == (["published", "published"], [["v1"], ["v1", "v2"]], [1, 2])


async def test_what_is_settled_needs_not_be_remembered():
    world = World()
    async with learner_of(world, THREE) as learner:
        await taught(world, learner)
        [ledger] = learner._state.ledgers.values()
        assert not ledger._counted
        assert b'"counted": []' in ledger.blob()[1]()
        gone = world.judge(world.ask()[0], 0.5)
        ledger.count(gone.id, ["*"], 0.5)
        ledger.count("decided long ago", ["*"], 0.5)
        await ledger.save(world.store)
        again = await type(ledger).load(world.store, ledger.root, 8.0)
        assert again.counted(gone.id)
        assert not again.counted("decided long ago")


async def test_whoever_takes_the_locks_of_a_chain_takes_them_in_one_order():
    lines = [Line(key) for key in chain("toy", "default", ROUTE)]
    assert in_order(reversed(lines)) == lines
    world = World()
    async with learner_of(world, THREE) as learner:
        await taught(world, learner)
        async with asyncio.timeout(20):
            for _ in range(5):
                waiting = asyncio.ensure_future(teach(world, learner, 1.0))
                await learner.attach("toy", world.host)
                await waiting
