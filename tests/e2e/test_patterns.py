"""The pattern banks of the program: one a tenant, kept, bounded, and without single people's embeddings."""

from __future__ import annotations

import contextlib
import dataclasses
import time

import anyio
import anyio.lowlevel
import numpy as np
from program import command, write_config

from sona_stream.app import Application
from sona_stream.app.assembly import build_embedder, pattern_factory
from sona_stream.app.patterns import PatternBanks
from sona_stream.config.settings import Deployment, KeySettings, Settings, SonaSettings
from sona_stream.engine import SonaEngine
from sona_stream.errors import StateError
from sona_stream.events import Feedback, Score, Trajectory
from sona_stream.store import SqliteStore

SETTINGS = Settings(models=())
EMBEDDER = build_embedder(SETTINGS)


empty = pattern_factory(SETTINGS, EMBEDDER)


def direction(seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).standard_normal(EMBEDDER.dim).astype(np.float32)
    return vector / np.linalg.norm(vector)


def lesson(vector: np.ndarray):
    def teach(bank: SonaEngine) -> None:
        bank.end_trajectory(bank.begin_trajectory(vector), 1.0)

    return teach


class Blobs:
    """The part of a store that banks use."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.fails = False
        self.writes = 0

    async def get_blob(self, name):
        await anyio.lowlevel.checkpoint()
        if self.fails:
            raise StateError("the disk is gone")
        return self.blobs.get(name)

    async def put_blob(self, name, data):
        if self.fails:
            raise StateError("the disk is gone")
        self.writes += 1
        self.blobs[name] = data


def banks_of(store, **options) -> PatternBanks:
    return PatternBanks(empty, EMBEDDER, store, **options)


async def until(condition) -> None:
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110  (nothing tells of it)
            await anyio.sleep(0.01)


async def nearest(banks, tenant, vector):
    return [round(one.similarity, 2) for one in (await banks.of(tenant)).find_patterns(vector, 1)]


async def test_a_bank_is_kept_for_its_tenant_alone():
    store, query = Blobs(), direction(1)
    banks = banks_of(store)
    await banks.of("a")
    await banks.of("b")
    banks.learn("a", lesson(query))
    await banks.save()
    assert store.writes == 1, "what has learned nothing is not written"
    await banks.save()
    assert store.writes == 1
    again = banks_of(store)
    await again.load(["a", "b"])
    assert [(tenant, one.cluster_size) for tenant, one in again.patterns()] == [("a", 1)]
    assert await nearest(again, "a", query) == [1.0]
    assert await nearest(again, "b", query) == []
    assert again.stats()["trajectories_recorded"] == 1
    assert again.stats()["tenants_in_memory"] == 2


async def test_many_at_once_open_one_bank():
    banks = banks_of(Blobs())
    seen = []

    async def ask() -> None:
        seen.append(await banks.of("a"))

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(ask)
    assert len({id(bank) for bank in seen}) == 1


async def test_banks_leave_memory_and_come_back_whole(monkeypatch):
    monkeypatch.setattr("sona_stream.app.patterns._TEND_EVERY_S", 0.01)
    store = Blobs()
    banks = banks_of(store, limit=2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(banks.tend)
        for i in range(5):
            await banks.of(f"t{i}")
            banks.learn(f"t{i}", lesson(direction(i)))
        await until(lambda: banks.stats()["tenants_in_memory"] <= 2)
        assert {tenant for tenant, _ in banks.patterns()} == {"t3", "t4"}
        banks.learn("t0", lesson(direction(0)))  # its answer took longer than its bank stayed
        await until(lambda: "t0" in {tenant for tenant, _ in banks.patterns()})
        tasks.cancel_scope.cancel()
    await banks.save()
    again = banks_of(store)
    await again.load([f"t{i}" for i in range(5)])
    assert {tenant: one.cluster_size for tenant, one in again.patterns()} == {
        "t0": 2, "t1": 1, "t2": 1, "t3": 1, "t4": 1,
    }  # fmt: skip


async def test_a_store_that_fails_costs_no_answer_and_no_pattern(monkeypatch, caplog):
    monkeypatch.setattr("sona_stream.app.patterns._TEND_EVERY_S", 0.01)
    store, query = Blobs(), direction(1)
    banks = banks_of(store)
    await banks.of("a")
    banks.learn("a", lesson(query))
    await banks.save()
    later = banks_of(store, limit=1)
    store.fails = True
    assert await nearest(later, "a", query) == []
    later.learn("a", lesson(query))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(later.tend)
        await anyio.sleep(0.05)
        store.fails = False
        await until(later.patterns)
        tasks.cancel_scope.cancel()
    [(_, pattern)] = later.patterns()
    assert pattern.cluster_size == 2
    assert "could not be tended" in caplog.text


async def test_no_single_embedding_is_kept():
    """Patterns are: here three queries of one pattern, whose centre is none of them."""
    store = Blobs()
    banks = banks_of(store)
    bank = await banks.of("a")
    near = [direction(1) + 0.02 * direction(i) for i in range(2, 5)]
    for query in near:
        banks.learn("a", lesson(query))
    assert bank.get_stats()["trajectories_buffered"] == 3
    await banks.save()
    [data] = store.blobs.values()
    again = SonaEngine.from_bytes(data, config=bank.config)
    assert again.get_stats()["trajectories_buffered"] == 0
    assert again.get_stats()["trajectories_recorded"] == 3
    assert [one.cluster_size for one in again.patterns()] == [3]
    assert len(data) < len(bank.to_bytes())


async def test_forgetting_a_tenant_takes_its_patterns(tmp_path):
    async with SqliteStore(SonaSettings(), directory=tmp_path) as store:
        banks = banks_of(store)
        for tenant in ("a", "b"):
            await banks.of(tenant)
            banks.learn(tenant, lesson(direction(1)))
        await banks.save()
        assert (await store.forget(tenant="a"))["blobs"] == 1
        again = banks_of(store)
        await again.load(["a", "b"])
        assert [tenant for tenant, _ in again.patterns()] == ["b"]


@contextlib.asynccontextmanager
async def application(folder):
    deployment = Deployment(
        model_name="m", provider="openai", upstream_model="m", params={"api_base": "http://127.0.0.1:9/v1"}
    )
    keys = tuple(KeySettings(key=f"sha256:{i:064x}", tenant=f"t{i}") for i in range(2))
    program = Application(Settings(models=(deployment,), sona=SonaSettings(keys=keys)), directory=folder)
    await program.startup()
    try:
        yield program
    finally:
        await program.shutdown()


def trajectory(tenant: str, vector: np.ndarray) -> Trajectory:
    return Trajectory(
        request_id=f"r-{tenant}", tenant=tenant, key_id="k", model="m", embedding=vector, score=Score(value=1.0),
        started_at=time.time(),
    )  # fmt: skip


def judged(tenant: str) -> Feedback:
    return Feedback(
        id=f"f-{tenant}", request_id=f"r-{tenant}", tenant=tenant, key_id="k", kind="rating", quality=0.0
    )


async def test_scores_and_feedback_move_their_tenants_patterns_only(tmp_path):
    async with application(tmp_path) as program:
        for tenant in ("t0", "t1"):
            await program.pattern_banks.of(tenant)
            program.trajectories.submit(trajectory(tenant, direction(1)))
        await program.learn(judged("t0"))
        seen = {view["tenant"]: view for view in await program.patterns()}
        assert (seen["t0"]["cluster_size"], seen["t1"]["cluster_size"]) == (2, 1)
        assert seen["t0"]["avg_quality"] < seen["t1"]["avg_quality"]
        assert (await program.stats())["engine"]["trajectories_recorded"] == 3
    async with application(tmp_path) as program:
        assert {view["tenant"]: view for view in await program.patterns()} == seen


async def test_the_learner_gets_feedback_though_its_statistic_fails(tmp_path, monkeypatch, caplog):
    async def broken(*args, **kwargs):
        raise StateError("the disk is gone")

    async with application(tmp_path) as program:
        monkeypatch.setattr(program.trajectories, "judge", broken)
        outcome = await program.learn(dataclasses.replace(judged("t0"), request_id="none"))
    assert (outcome.feedback_id, outcome.status) == ("f-t0", "queued")
    assert "could not move routing statistics" in caplog.text


async def test_route_shows_the_tenants_patterns(tmp_path, tiny_folder):
    async with SqliteStore(SonaSettings(), directory=tmp_path / "state") as store:
        banks = banks_of(store)
        await banks.of("acme")
        [vector] = await EMBEDDER.embed(["sort a list"])
        banks.learn("acme", lesson(vector))
        await banks.save()
    config = write_config(tmp_path / "c.yaml", tiny_folder)
    for tenant, similarity in (("acme", "similarity 1.0"), ("default", "nearest_patterns: none")):
        shown = command(
            "route", "sort a list", "--tenant", tenant, "--config", str(config), state=tmp_path / "state"
        )
        assert similarity in shown.stdout, shown.stdout + shown.stderr
