"""What people and scrapes ask about all adapters costs what is told, not what is stored."""

import pytest
from click.testing import CliRunner
from test_watch import answer, learner_of
from toy import World

from sona_stream.cli.adapters import adapters
from sona_stream.config.settings import LearningSettings, SonaSettings
from sona_stream.engine.learner.watch import Watch
from sona_stream.engine.learner.watches import Watches
from sona_stream.events import pupil
from sona_stream.store import SqliteStore, create_store
from sona_stream.store import adapters as rows

SETTINGS = LearningSettings(replay_every=10_000)
WHOSE = (("acme", None), ("acme", "anna"), ("acme", "ben"), ("acme2", None), ("ac", "anna"))


async def taught(world, learner, store):
    for tenant, user in WHOSE:
        request_id, _ = world.ask(tenant, user=user)
        store.submit_trajectory(world.store.trajectories[request_id])
        for quality in (1.0, 0.0):
            said = world.judge(request_id, quality, tenant=tenant)
            await learner.learn(await store.commit_feedback(said), wait=True)


async def test_versions_are_listed_without_reading_any(tmp_path, monkeypatch):
    folder = tmp_path / "state"
    async with create_store(SonaSettings(learner=SETTINGS), directory=folder) as store:
        world = World()
        of_store = World(world.host)
        of_store.store = store
        async with learner_of(of_store, SETTINGS) as learner:
            await taught(world, learner, store)
            whole = await store.adapters()

            def refused(*args):
                raise AssertionError("it read weights to print numbers")

            monkeypatch.setattr(rows, "_intact", refused)
            listed = await learner.adapters()
            assert [(one["key"], one["version"]) for one in listed] == [(one.key, one.version) for one in whole]
            for row, record in zip(listed, whole, strict=True):
                assert row["metrics"] == dict(record.metrics)
                assert (row["feedback"], row["status"], row["reason"]) == (1, record.status, "step")
                held = record.weights.nbytes + sum(moment.nbytes for moment in record.moments.values())
                assert held < row["bytes"] < held + 4096, "what its file takes"
                assert row["served"] is (record.version == 2)
            of_acme = {row["key"] for row in await learner.adapters(tenant="acme")}
            assert of_acme == {f"toy/{pupil('acme', user)}/*" for user in (None, "anna", "ben")}
    told = CliRunner().invoke(adapters, ["list", "--state-dir", str(folder), "--tenant", "ac"])
    assert told.output.count("\n") == 2
    assert f"* toy/{pupil('ac', 'anna')}/*@2" in told.output
    assert isinstance(store, SqliteStore)


async def test_a_store_that_cannot_tell_heads_lists_the_same():
    world = World()
    async with learner_of(world, SETTINGS) as learner:
        for tenant, user in WHOSE:
            request_id, _ = world.ask(tenant, user=user)
            await learner.learn(world.judge(request_id, 1.0, tenant=tenant), wait=True)
        assert [row["bytes"] > 0 for row in await learner.adapters()] == [True] * 5
        assert len(await learner.adapters(tenant="acme")) == 3
        assert [row["key"] for row in await learner.adapters(tenant="acme2")] == ["toy/acme2/*"]


async def test_a_scrape_reckons_no_evidence(monkeypatch):
    world = World()
    async with learner_of(world, SETTINGS) as learner:
        request_id, _ = world.ask()
        await learner.learn(world.judge(request_id, 1.0), wait=True)
        for i in range(3):
            learner.observe(answer([7] * 40, request_id=f"a{i}"))
        learner._state.refuse(learner._state.versions.lines()[0].key, "finite", "x")
        for kind, name in ((Watch, "_evidence"), (Watch, "view"), (Watches, "view")):
            monkeypatch.setattr(kind, name, lambda *_: pytest.fail("a scrape asked for it"))
        found = learner.gates()
        assert found["gated"] == {("default", "finite"): 1}
        assert found["trial"] == {"default": 3}
        assert [one.what for one in learner.budgets()] == ["adapters", "lessons", "watches"]
