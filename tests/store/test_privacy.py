"""What each level keeps, proved by reading every byte under the folder, the write-ahead log included."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from sona_stream.events import FeedbackOutcome, Sampling, pupil
from sona_stream.store import maintenance, privacy, retention
from sona_stream.store.schema import BACKUPS

TEXT, IDS = "canary-text-5f1c", "canary-id-77ab"
TOKENS = tuple(range(31_337, 31_369))
NEEDLE = np.array(TOKENS, dtype="<i4").tobytes()
EMBEDDING = np.linspace(0.123, 0.987, 16, dtype=np.float32)


def found(folder, needle):
    """Files that contain these bytes (or this text)."""
    needle = needle.encode() if isinstance(needle, str) else needle
    return [path.name for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]


async def live(store, make):
    """Everything a canary can come in by; the correction is decided."""
    store.submit_trajectory(
        make.trajectory(
            query=f"what is {TEXT}",
            body=f'{{"prompt": "{TEXT}"}}'.encode(),
            answer=f"it is {TEXT}",
            sampling=Sampling(stop=(TEXT,)),
            user=f"user-{IDS}",
            requested_model=f"model-{IDS}",
            client_ids=(f"client-{IDS}",),
            completion_id=f"cmpl-{IDS}",
            token_ids=TOKENS,
            prompt_ids=TOKENS,
            embedding=EMBEDDING,
        )
    )
    said = make.feedback(
        "f1",
        kind="correction",
        quality=None,
        correction=f"no, {TEXT}",
        user=f"user-{IDS}",
        idempotency_key=f"k-{IDS}",
    )
    assert await store.commit_feedback(said) == said
    capture = make.capture(tokens=len(TOKENS), token_ids=np.array(TOKENS, dtype=np.int32))
    await store.put_capture(make.key, capture, 1.0, feedback_id="f1")
    assert [one.correction for one in await store.pending_feedback()] == [f"no, {TEXT}"]
    return capture


async def written(store):
    while store.counters()["queue_length"]:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def test_at_none_nothing_personal_reaches_the_disk(open_store, make, folder, caplog):
    async with open_store("none") as store:
        capture = await live(store, make)
        await written(store)
        hidden = capture.hidden.astype(np.float16)[0].tobytes()
        needles = (TEXT, IDS, NEEDLE, EMBEDDING.tobytes()[:16], hidden)
        for needle in needles:
            assert found(folder, needle) == []
        for name in (f"client-{IDS}", f"cmpl-{IDS}", "r1"):
            assert await store.find_requests(name, tenant="acme") == ["r1"]
        kept = await store.trajectory("r1", tenant="acme")
        assert (kept.model, kept.score.value, kept.route.pattern) == ("small", 0.5, "p7")
        assert kept.user is None
        assert kept.requested_model == ""
        assert await store.captures(make.key, limit=5) == []
        again = make.feedback(
            "f2", kind="correction", quality=None, correction=f"no, {TEXT}", idempotency_key=f"k-{IDS}"
        )
        assert (await store.commit_feedback(again)).id == "f1"
        await store.record_outcome(FeedbackOutcome(feedback_id="f1", status="published"))
        for needle in needles:
            assert found(folder, needle) == []
    for needle in needles:
        assert found(folder, needle) == []
    assert TEXT not in caplog.text
    assert IDS not in caplog.text


async def test_at_none_a_correction_lost_with_its_process_is_settled(open_store, make):
    async with open_store("none") as store:
        await live(store, make)
    async with open_store("none") as store:
        assert await store.pending_feedback() == []
        settled = await store.outcome("f1")
        assert settled.status == "skipped"
        assert "storage: none" in settled.reason
        retry = make.feedback("f9", kind="correction", quality=None, correction="other", idempotency_key=f"k-{IDS}")
        assert (await store.commit_feedback(retry)).id == "f1"


async def test_at_features_text_never_lands_and_a_correction_only_waits(open_store, make, folder):
    async with open_store("features") as store:
        await live(store, make)
        await written(store)
        assert found(folder, f"no, {TEXT}")
        assert not found(folder, f"what is {TEXT}")
        assert not found(folder, f'"{TEXT}"')
        assert found(folder, IDS)
        await store.record_outcome(FeedbackOutcome(feedback_id="f1", status="accepted"))
        deadline = time.monotonic() + 5
        while found(folder, TEXT):
            assert time.monotonic() < deadline, "the correction must leave the log while the store is open"
            await asyncio.sleep(0.05)
        assert (await store.feedback())[0].correction is None
    assert not found(folder, TEXT)
    assert found(folder, NEEDLE)


async def test_at_features_a_correction_survives_a_crash_until_its_outcome(open_store, make):
    async with open_store("features") as store:
        await live(store, make)
    async with open_store("features") as store:
        assert [one.correction for one in await store.pending_feedback()] == [f"no, {TEXT}"]


async def test_lowering_the_level_removes_what_is_there(open_store, make, folder, caplog):
    async with open_store("text") as store:
        await live(store, make)
        await store.record_outcome(FeedbackOutcome(feedback_id="f1", status="accepted"))
        await store.put_blob("routing/patterns", EMBEDDING.tobytes())
        await store.put_blob("learner/small/acme/*", b"{}")
        await written(store)
        assert found(folder, f"what is {TEXT}")
    assert found(folder, TEXT)
    maintenance.backup(folder, folder / BACKUPS / "state-before-restore-x.tar")
    maintenance.backup(folder, folder.parent / "mine.tar")
    async with open_store("features") as store:
        assert await store.trajectory("r1") is not None
    assert not found(folder, TEXT), "nor in the copies that were made by themselves"
    assert "'automatic copies': 1" in caplog.text
    assert (folder.parent / "mine.tar").exists()
    assert found(folder, IDS)
    (folder / BACKUPS / "state-v1-x.sqlite3").write_bytes(IDS.encode())
    async with open_store("features"):
        assert found(folder / BACKUPS, IDS), "nothing was lowered: the copy stays"
    async with open_store("none") as store:
        assert (await store.trajectory("r1")).model == "small"
        assert not list((folder / BACKUPS).iterdir())
        assert await store.get_blob("routing/patterns") is None, "patterns are made of embeddings"
        assert await store.get_blob("learner/small/acme/*") == b"{}"
    for needle in (IDS, NEEDLE, EMBEDDING.tobytes()[:16]):
        assert not found(folder, needle)


async def test_a_person_is_forgotten_and_no_one_else(open_store, make, folder):
    async with open_store("text") as store:
        for tenant, user in (("acme", "alice"), ("acme", "bob"), ("acme", None), ("other", "alice")):
            mark = f"{tenant}-{user}-mark"
            store.submit_trajectory(
                make.trajectory(f"r-{mark}", tenant=tenant, user=user, query=mark, client_ids=(mark,))
            )
            await store.commit_feedback(
                make.feedback(
                    f"f-{mark}",
                    request_id=f"r-{mark}",
                    tenant=tenant,
                    user=user,
                    kind="correction",
                    quality=None,
                    correction=mark,
                )
            )
            capture = make.capture(f"r-{mark}", seed=len(mark), fingerprint=mark)
            await store.put_capture(f"m/{tenant}/*", capture, 1.0, feedback_id=f"f-{mark}")
        await store.put_adapter(make.record(key="m/acme/*"))
        await store.set_current("m/acme/*", 1, reason="step")
        removed = await store.forget(tenant="acme", user="alice")
        assert {name: count for name, count in removed.items() if count} == {
            "captures": 1,
            "feedback": 1,
            "trajectories": 1,
        }
        assert await store.find_requests("acme-alice-mark", tenant="acme") == []
        assert len(await store.feedback(tenant="acme")) == 2
        assert len(await store.captures("m/acme/*", limit=9)) == 2
        assert len(list((folder / "captures").iterdir())) == 3
        assert await store.adapter("m/acme/*", 1) is not None
    assert not found(folder, "acme-alice-mark")
    assert found(folder, "other-alice-mark")
    assert found(folder, "acme-bob-mark")
    async with open_store("text") as store:
        await store.put_blob("learner/m/acme/*", b"acme-")
        await store.put_blob("learner/m/other/*", b"kept")
        await store.forget(tenant="acme")
        assert await store.get_blob("learner/m/acme/*") is None
        assert await store.get_blob("learner/m/other/*") == b"kept"
        assert await store.adapters() == []
        assert await store.current_versions() == {}
        assert len(await store.feedback()) == 1
    assert not found(folder, "acme-")
    assert not found(folder, "m/acme/")
    assert found(folder, "other-alice-mark")


async def test_what_one_person_taught_goes_with_the_person(open_store, make):
    keys = {who: f"m/{pupil('acme', who)}/*" for who in ("alice", "bob", None)}
    async with open_store("features") as store:
        for i, key in enumerate(keys.values()):
            await store.put_adapter(make.record(key=key))
            await store.put_blob(f"learner/{key}", b"ledger")
            await store.put_capture(key, make.capture(f"r{i}", seed=i, fingerprint="f"), 1.0, feedback_id=f"f{i}")
        removed = await store.forget(tenant="acme", user="alice")
        assert (removed["adapters"], removed["captures"], removed["blobs"]) == (1, 1, 1)
        assert {record.key for record in await store.adapters()} == {keys["bob"], keys[None]}
        assert await store.get_blob(f"learner/{keys['alice']}") is None
        await store.forget(tenant="acme")
        assert await store.adapters() == []
        assert await store.captures(keys["bob"], limit=9) == []


async def test_each_class_expires_by_its_own_ttl(open_store, make):
    day = 86400.0
    async with open_store("text", ttl_days=(10, 2)) as store:
        await live(store, make)
        await written(store)
        now = time.time()
        assert not any((await store.expire(now=now + day)).values())
        await store.expire(now=now + 3 * day)
        kept = await store.trajectory("r1")
        assert (kept.query, kept.body, kept.answer) == (None, None, None)
        assert kept.token_ids == TOKENS
        assert (await store.feedback())[0].correction is None
        await store.expire(now=now + 11 * day)
        assert await store.trajectory("r1") is None
        assert await store.feedback() == []
        assert await store.captures(make.key, limit=5) == []
    async with open_store("text", ttl_days=(2, 10)) as store:
        store.submit_trajectory(make.trajectory(query=TEXT, token_ids=TOKENS))
        await written(store)
        await store.expire(now=time.time() + 3 * day)
        kept = await store.trajectory("r1")
        assert (kept.query, kept.token_ids, kept.embedding, kept.client_ids) == (TEXT, (), None, ())
        assert await store.find_requests("client-1", tenant="acme") == []


async def test_text_that_outlives_its_features_is_forgotten_with_the_person(open_store, make, folder, monkeypatch):
    monkeypatch.setattr(retention, "_BATCH", 2)
    day = 86400.0
    async with open_store("text", ttl_days=(2, 10)) as store:
        for number in range(5):
            store.submit_trajectory(make.trajectory(f"r{number}", query=f"{TEXT} {number}", user=f"user-{number}"))
        await written(store)
        async with asyncio.timeout(5):
            assert (await store.expire(now=time.time() + 3 * day))["features"] == 5
            assert (await store.expire(now=time.time() + 3 * day))["features"] == 0
        assert (await store.forget(tenant="acme", user="user-3"))["trajectories"] == 1
        assert len(await store.trajectories(limit=9)) == 4
    assert not found(folder, f"{TEXT} 3")
    assert found(folder, f"{TEXT} 4")
    assert found(folder, "user-4")
    async with open_store("none"):
        pass
    assert not found(folder, TEXT)
    assert not found(folder, "user-4")


async def test_expiry_goes_through_many_rows_in_slices(open_store, make, monkeypatch):
    monkeypatch.setattr(retention, "_BATCH", 7)
    async with open_store() as store:
        for number in range(30):
            store.submit_trajectory(make.trajectory(f"r{number}"))
        await written(store)
        removed = await store.expire(now=time.time() + 31 * 86400)
        assert removed["trajectories"] == 30
        assert await store.trajectories(limit=50) == []


async def test_what_is_too_old_goes_at_open(open_store, make):
    async with open_store() as store:
        await store.commit_feedback(make.feedback())
        await asyncio.sleep(0.02)
    async with open_store(ttl_days=(1e-7, 1e-7)) as store:
        assert await store.feedback() == []


@pytest.mark.parametrize("text", ["", "plain", "\ud800", "\0", "\u4f60\u597d"])
def test_any_text_makes_a_round_trip(text):
    assert privacy.text_from(privacy.text_bytes(text)) == text
