"""The contract: what goes in comes out, at once and after a restart, and only to its tenant."""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
import threading
import time

import numpy as np
import pytest

from sona_stream.config.settings import SonaSettings
from sona_stream.errors import FeedbackConflict, StateError
from sona_stream.events import AdapterRef, FeedbackOutcome
from sona_stream.store import create_store, session
from sona_stream.store.schema import DATABASE


def same(left, right):
    """Equality of two trajectories whose embeddings are arrays."""
    if (left.embedding is None) != (right.embedding is None):
        return False
    if left.embedding is not None and not np.array_equal(left.embedding, right.embedding):
        return False
    return dataclasses.replace(left, embedding=None) == dataclasses.replace(right, embedding=None)


async def test_a_trajectory_is_visible_at_once_and_after_a_restart(open_store, make):
    given = make.trajectory()
    async with open_store("text") as store:
        store.submit_trajectory(given)
        assert same(await store.trajectory("r1", tenant="acme"), given)
        assert same(await store.trajectory("r1"), given)
        assert await store.trajectory("r1", tenant="other") is None
        for name in ("r1", "client-1", "client-2", "cmpl-r1"):
            assert await store.find_requests(name, tenant="acme") == ["r1"]
            assert await store.find_requests(name, tenant="other") == []
    async with open_store("text") as store:
        assert same(await store.trajectory("r1", tenant="acme"), given)
        assert same(await store.trajectory("r1"), given)
        assert await store.trajectory("r1", tenant="other") is None
        for name in ("r1", "client-1", "client-2", "cmpl-r1"):
            assert await store.find_requests(name, tenant="acme") == ["r1"]
            assert await store.find_requests(name, tenant="other") == []
        assert await store.find_requests("nobody", tenant="acme") == []


async def test_features_keeps_ids_and_vectors_and_drops_text(open_store, make):
    given = make.trajectory()
    expected = dataclasses.replace(
        given, query=None, body=None, answer=None, sampling=dataclasses.replace(given.sampling, stop=())
    )
    async with open_store("features") as store:
        store.submit_trajectory(given)
        assert same(await store.trajectory("r1"), expected)
    async with open_store("features") as store:
        assert same(await store.trajectory("r1"), expected)


async def test_a_bare_trajectory_survives(open_store, make):
    given = make.trajectory(
        user=None,
        route=None,
        adapter=None,
        client_ids=(),
        completion_id=None,
        embedding=None,
        prompt_ids=(),
        token_ids=(),
        query=None,
        body=None,
        answer=None,
        usage=None,
        finish_reason=None,
        ttft_s=None,
    )
    async with open_store("text") as store:
        store.submit_trajectory(given)
    async with open_store("text") as store:
        assert same(await store.trajectory("r1"), given)


async def test_trajectories_are_on_disk_within_a_second(open_store, folder, make):
    async with open_store() as store:
        store.submit_trajectory(make.trajectory())
        assert session._FLUSH_S < 0.5, "it waits as long for company, then for the disk"
        started = time.monotonic()
        with sqlite3.connect(f"file:{folder / DATABASE}?mode=ro", uri=True) as other:
            while not other.execute("SELECT count(*) FROM trajectories").fetchone()[0]:
                assert time.monotonic() - started < 20, "nothing else makes it write; the disk may be busy"
                await asyncio.sleep(0.02)
        other.close()


async def test_the_newest_come_oldest_first_from_queue_and_disk(open_store, make):
    async with open_store() as store:
        for number in range(6):
            store.submit_trajectory(make.trajectory(f"r{number}", started_at=float(number)))
    async with open_store() as store:
        store.submit_trajectory(make.trajectory("r9", started_at=9.0))
        store.submit_trajectory(make.trajectory("r3", started_at=3.0, duration_s=42.0))
        found = await store.trajectories(limit=4)
        assert [one.request_id for one in found] == ["r3", "r4", "r5", "r9"]
        assert found[0].duration_s == 42.0
        assert [one.request_id for one in await store.trajectories(limit=10, after=4.0)] == ["r5", "r9"]
        assert await store.trajectories(limit=0) == []


async def test_an_id_that_names_two_requests_gives_both(open_store, make):
    async with open_store() as store:
        store.submit_trajectory(make.trajectory("r1"))
        store.submit_trajectory(make.trajectory("r2"))
        assert sorted(await store.find_requests("client-1", tenant="acme")) == ["r1", "r2"]


async def test_a_full_queue_keeps_the_newest_and_counts(open_store, make):
    async with open_store(queue_capacity=3) as store:
        gate = threading.Event()
        holding = asyncio.ensure_future(store._open().write(lambda connection: gate.wait(10)))
        await asyncio.sleep(0.05)
        for number in range(8):
            store.submit_trajectory(make.trajectory(f"r{number}"))
        assert [one.request_id for one in await store.trajectories(limit=9)] == ["r5", "r6", "r7"]
        assert store.counters()["trajectories_dropped"] == 5
        gate.set()
        await holding
    async with open_store() as store:
        assert {one.request_id for one in await store.trajectories(limit=9)} == {"r5", "r6", "r7"}


async def test_the_queue_is_bounded_in_bytes(open_store, make):
    async with open_store("text", queue_bytes=50_000) as store:
        gate = threading.Event()
        holding = asyncio.ensure_future(store._open().write(lambda connection: gate.wait(10)))
        await asyncio.sleep(0.05)
        for number in range(4):
            store.submit_trajectory(make.trajectory(f"r{number}", body=b"x" * 30_000))
        assert store.counters()["queue_length"] == 1
        gate.set()
        await holding


async def test_a_trajectory_that_cannot_be_encoded_harms_no_other(open_store, make):
    async with open_store() as store:
        store.submit_trajectory(make.trajectory("bad", token_ids=(1 << 40,)))
        store.submit_trajectory(make.trajectory("good"))
    async with open_store() as store:
        assert await store.trajectory("bad") is None
        assert await store.trajectory("good") is not None
        assert store.counters()["trajectories_dropped"] == 0


async def test_feedback_is_committed_once_per_idempotency_key(open_store, make):
    async with open_store() as store:
        first = make.feedback("f1", idempotency_key="once")
        assert await store.commit_feedback(first) == first
        assert await store.commit_feedback(make.feedback("f2", idempotency_key="once")) == first
        with pytest.raises(FeedbackConflict):
            await store.commit_feedback(make.feedback("f3", idempotency_key="once", quality=0.1))
        elsewhere = make.feedback("f4", idempotency_key="once", tenant="other", quality=0.1)
        assert await store.commit_feedback(elsewhere) == elsewhere
        assert await store.commit_feedback(first) == first
        with pytest.raises(FeedbackConflict, match="f1"):
            await store.commit_feedback(make.feedback("f1", quality=0.0))
    async with open_store() as store:
        assert await store.commit_feedback(make.feedback("f5", idempotency_key="once")) == first
        assert [one.id for one in await store.feedback()] == ["f1", "f4"]
        assert [one.id for one in await store.feedback(tenant="acme")] == ["f1"]
        assert [one.id for one in await store.feedback(limit=1)] == ["f4"]


async def test_what_one_person_said(open_store, make):
    async with open_store() as store:
        said = {"a": "alice", "b": "bob", "k": None, "o": None, "s": "alice", "c": "alice", "t": "alice"}
        more = {"o": {"key_id": "other"}, "s": {"kind": "score"}, "t": {"tenant": "elsewhere"}}
        for id, user in said.items():
            await store.commit_feedback(make.feedback(id, user=user, **more.get(id, {})))
        key = make.feedback().key_id

        async def ids(person, **asked):
            return [one.id for one in await store.feedback(tenant="acme", person=person, **asked)]

        assert await ids("user:alice") == ["a", "c"]
        assert await ids("user:alice", limit=1) == ["c"]
        assert await ids(f"key:{key}") == ["k"]
        assert await ids("key:other") == ["o"]
        assert await ids("user:\ud800") == await ids("user:") == []


async def test_every_kind_of_feedback_comes_back_whole(open_store, make):
    given = [
        make.feedback("f1"),
        make.feedback("f2", kind="metric", metric_name="csat", value=4.0, idempotency_key="k\u00e9"),
        make.feedback("f3", kind="correction", quality=None, correction="better \ud800"),
        make.feedback("f4", user=None),
    ]
    async with open_store("text") as store:
        for one in given:
            assert await store.commit_feedback(one) == one
    async with open_store("text") as store:
        assert await store.feedback() == given
        assert await store.pending_feedback() == given


async def test_outcomes_end_the_waiting(open_store, make):
    async with open_store() as store:
        for id in ("f1", "f2", "f3"):
            await store.commit_feedback(make.feedback(id))
        assert await store.outcome("f1") is None
        made = FeedbackOutcome(
            feedback_id="f1", status="published", reason="step", adapter=AdapterRef(key=make.key, version=2)
        )
        await store.record_outcome(made)
        await store.record_outcome(FeedbackOutcome(feedback_id="f2", status="queued"))
        await store.record_outcome(FeedbackOutcome(feedback_id="gone", status="skipped"))
        assert await store.outcome("f1") == made
        assert await store.outcome("f2") is None
    async with open_store() as store:
        assert await store.outcome("f1") == made
        assert [one.id for one in await store.pending_feedback()] == ["f2", "f3"]


async def test_concurrent_feedback_shares_commits(open_store, make):
    async with open_store() as store:
        before = store.counters()["commits"]
        await asyncio.gather(*(store.commit_feedback(make.feedback(f"f{n}")) for n in range(200)))
        assert store.counters()["commits"] - before <= 20
        assert len(await store.feedback()) == 200


async def test_one_conflict_in_a_group_leaves_the_others(open_store, make):
    async with open_store() as store:
        given = [make.feedback(f"f{n}", idempotency_key="k", quality=n / 10) for n in range(3)]
        given += [make.feedback(f"g{n}") for n in range(3)]
        results = await asyncio.gather(*map(store.commit_feedback, given), return_exceptions=True)
        assert [type(one).__name__ for one in results] == ["Feedback"] + ["FeedbackConflict"] * 2 + ["Feedback"] * 3
        assert [one.id for one in await store.feedback()] == ["f0", "g0", "g1", "g2"]


async def test_the_event_loop_is_free_while_a_commit_takes_its_time(open_store, make):
    async with open_store() as store:
        gate = threading.Event()
        holding = asyncio.ensure_future(store._open().write(lambda connection: gate.wait(10)))
        waiting = asyncio.ensure_future(store.commit_feedback(make.feedback()))
        ticks = 0
        for _ in range(20):
            await asyncio.sleep(0.002)
            ticks += 1
        assert ticks == 20
        assert not waiting.done()
        assert await store.feedback() == []
        gate.set()
        await holding
        assert (await waiting).id == "f1"


async def test_a_cancelled_waiter_breaks_nothing(open_store, make):
    async with open_store() as store:
        waiting = asyncio.ensure_future(store.commit_feedback(make.feedback()))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await store.commit_feedback(make.feedback("f2"))


async def test_closing_writes_what_is_queued_even_when_cancelled(open_store, make):
    entered = asyncio.Event()

    async def serve() -> None:
        async with open_store() as store:
            for number in range(50):
                store.submit_trajectory(make.trajectory(f"r{number}"))
            entered.set()
            await asyncio.sleep(60)

    task = asyncio.ensure_future(serve())
    await entered.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with open_store() as store:
        assert len(await store.trajectories(limit=100)) == 50


async def test_outside_the_block(folder, make):
    store = create_store(SonaSettings(), directory=folder)
    store.submit_trajectory(make.trajectory())
    assert store.counters()["trajectories_dropped"] == 1
    assert not folder.exists()
    for call in (store.feedback(), store.commit_feedback(make.feedback()), store.current_versions()):
        with pytest.raises(StateError, match="not open"):
            await call
    async with store:
        with pytest.raises(StateError, match="open already"):
            await store.__aenter__()
        await store.commit_feedback(make.feedback())
    async with store:
        assert len(await store.feedback()) == 1


async def test_blobs(open_store, folder):
    async with open_store() as store:
        assert await store.get_blob("patterns") is None
        await store.put_blob("patterns", b"\0one")
        await store.put_blob("patterns", b"two")
        await store.put_blob("learner/a_b/t/*", b"")
        await store.put_blob("learner/axb/t/*", b"")
        assert await store.blob_names("learner/a_b/") == ["learner/a_b/t/*"]
        assert await store.blob_names("p") == ["patterns"]
        assert await store.blob_names("nothing") == []
    async with open_store() as store:
        assert await store.get_blob("patterns") == b"two"
        with sqlite3.connect(folder / DATABASE) as other:
            other.execute("UPDATE blobs SET data = x'00'")
        other.close()
        assert await store.get_blob("patterns") is None


async def test_stats(open_store, make):
    async with open_store() as store:
        await store.commit_feedback(make.feedback())
        await store.put_adapter(make.record(1))
        stats = await store.stats()
        assert stats["rows"]["feedback"] == stats["rows"]["adapters"] == stats["feedback_pending"] == 1
        assert stats["bytes"]["database"] > 0
        assert stats["bytes"]["files"] > 16 * 2 * 4
        assert stats["last_error"] is None
        assert stats["queue_length"] == stats["write_errors"] == 0
