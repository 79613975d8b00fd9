"""A full disk, a folder that turns read-only, a log torn anywhere, two hundred random histories."""

from __future__ import annotations

import asyncio
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sona_stream.config.settings import SonaSettings
from sona_stream.errors import FeedbackConflict, StateError
from sona_stream.events import FeedbackOutcome
from sona_stream.store import SqliteStore, create_store, maintenance
from sona_stream.store import writer as writer_module
from sona_stream.store.lock import FolderLock
from sona_stream.store.schema import DATABASE


async def limit_pages(store, pages):
    """SQLite's own SQLITE_FULL, as a full disk gives it."""
    await store._open().write(lambda c: c.execute(f"PRAGMA max_page_count={pages}").fetchone())


async def page_count(store):
    return await store._open().write(lambda c: c.execute("PRAGMA page_count").fetchone()[0])


async def fill(store, make):
    for number in range(500):
        await store.commit_feedback(make.feedback(f"x{number}", metric_name="m" * 500))


async def test_a_full_disk_is_said_counted_and_survived(open_store, make, monkeypatch):
    monkeypatch.setattr(writer_module, "_RETRY_S", 0.05)
    async with open_store("text") as store:
        await store.commit_feedback(make.feedback("f0"))
        await limit_pages(store, await page_count(store))
        with pytest.raises(StateError, match="free some space"):
            await fill(store, make)
        written = len(await store.feedback(limit=1000))
        for number in range(50):
            store.submit_trajectory(make.trajectory(f"r{number}", body=b"x" * 5000))
        await asyncio.sleep(0.4)
        assert (await store.trajectory("r49")) is not None
        counters = store.counters()
        assert counters["queue_length"] == 50
        assert counters["write_errors"] >= 2
        assert "full" in counters["last_error"]
        await limit_pages(store, 1 << 30)
        await store.commit_feedback(make.feedback("after"))
        assert len(await store.feedback(limit=1000)) == written + 1
        async with asyncio.timeout(5):
            while store.counters()["queue_length"]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    async with open_store("text") as store:
        assert len(await store.trajectories(limit=100)) == 50


async def test_closing_with_a_full_disk_ends_and_counts(open_store, make, caplog):
    async with open_store("text") as store:
        await limit_pages(store, await page_count(store))
        for number in range(50):
            store.submit_trajectory(make.trajectory(f"r{number}", body=b"x" * 5000))
    assert store.counters()["trajectories_dropped"] == 50
    assert "50 trajectories could not be written" in caplog.text
    async with open_store("text") as store:
        assert await store.trajectories(limit=9) == []


async def test_a_tensor_file_that_cannot_be_written(open_store, make, folder, monkeypatch):
    async with open_store() as store:
        real = os.fsync

        def no_space(fd):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", no_space)
        with pytest.raises(StateError, match="free some space"):
            await store.put_adapter(make.record(1))
        monkeypatch.setattr(os, "fsync", real)
        assert await store.adapters() == []
        assert not [path for path in (folder / "adapters").rglob("*") if path.is_file()]
        await store.put_adapter(make.record(1))
        assert await store.adapter(make.key, 1) is not None


@pytest.mark.parametrize("refused", ["write", "ftruncate"])
async def test_a_lock_that_cannot_name_its_holder_is_a_lock(folder, monkeypatch, refused):
    def no_space(fd, given):
        raise OSError(28, "No space left on device")

    folder.mkdir()
    first, second = FolderLock(folder), FolderLock(folder)
    monkeypatch.setattr(os, refused, no_space)
    first.acquire()
    with pytest.raises(StateError, match="in use by process unknown"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
async def test_a_read_only_folder_is_named(open_store, folder):
    folder.mkdir(mode=0o500)
    with pytest.raises(StateError, match="make it writable"):
        async with open_store():
            pass


async def test_a_database_that_turns_read_only(open_store, make):
    async with open_store() as store:
        await store._open().write(lambda c: None)
        store._open().writer._connection.execute("PRAGMA query_only=ON")
        with pytest.raises(StateError, match="writable"):
            await store.commit_feedback(make.feedback())
        store.submit_trajectory(make.trajectory())
        assert await store.trajectory("r1") is not None
        store._open().writer._connection.execute("PRAGMA query_only=OFF")
        await store.commit_feedback(make.feedback())


async def test_a_log_torn_anywhere_keeps_a_prefix_of_the_commits(open_store, make, folder, tmp_path):
    """What a power cut leaves: the log up to some byte. Every commit before that byte must be whole."""
    async with open_store() as store:
        await store._open().write(lambda c: None)
        for number in range(30):
            await store.commit_feedback(make.feedback(f"f{number:02d}"))
        frozen = tmp_path / "frozen"
        shutil.copytree(folder, frozen)
    log = (frozen / f"{DATABASE}-wal").read_bytes()
    (frozen / f"{DATABASE}-shm").unlink(missing_ok=True)
    seen = set()
    for cut in [*range(0, len(log), len(log) // 12 + 37), len(log)]:
        torn = tmp_path / "torn"
        shutil.copytree(frozen, torn)
        (torn / f"{DATABASE}-wal").write_bytes(log[:cut])
        async with create_store(SonaSettings(), directory=torn) as store:
            ids = [one.id for one in await store.feedback()]
        assert ids == [f"f{number:02d}" for number in range(len(ids))]
        assert maintenance.verify(torn).ok
        seen.add(len(ids))
        shutil.rmtree(torn)
    assert 30 in seen
    assert len(seen) > 5


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("trajectory"), st.integers(0, 5), st.sampled_from("ab"), st.integers(0, 9)),
        st.tuples(st.just("feedback"), st.integers(0, 5), st.sampled_from("ab"), st.integers(0, 3)),
        st.tuples(st.just("outcome"), st.integers(0, 5), st.sampled_from("ab"), st.just(0)),
        st.tuples(st.just("adapter"), st.integers(1, 5), st.sampled_from("ab"), st.just(0)),
        st.tuples(st.just("serve"), st.integers(0, 5), st.sampled_from("ab"), st.just(0)),
        st.tuples(st.just("prune"), st.integers(0, 3), st.sampled_from("ab"), st.just(0)),
        st.tuples(st.just("forget"), st.integers(0, 1), st.sampled_from("ab"), st.just(0)),
        st.tuples(st.just("reopen"), st.just(0), st.just("a"), st.just(0)),
    ),
    max_size=14,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
def test_a_random_history_agrees_with_a_dict(operations, make, tmp_path_factory):
    asyncio.run(Model(make, tmp_path_factory.mktemp("model")).play(operations))


class Model:
    """The contract in a few dictionaries."""

    def __init__(self, make, folder):
        self.make, self.folder = make, folder
        self.requests, self.said, self.once, self.decided = {}, {}, {}, set()
        self.versions, self.current, self.count = {}, {}, 0

    async def play(self, operations):
        store = await SqliteStore(SonaSettings(), directory=self.folder).__aenter__()
        try:
            for name, number, tenant, extra in operations:
                if name == "reopen":
                    await store.__aexit__()
                    store = await SqliteStore(SonaSettings(), directory=self.folder).__aenter__()
                else:
                    await getattr(self, name)(store, number, tenant, extra)
                await self.check(store)
        finally:
            await store.__aexit__()
        assert maintenance.verify(self.folder).ok

    async def trajectory(self, store, number, tenant, extra):
        user = "ann" if number % 2 else None
        self.requests[tenant, f"r{number}"] = (float(extra), user)
        store.submit_trajectory(
            self.make.trajectory(
                f"r{number}",
                tenant=tenant,
                started_at=float(extra),
                user=user,
                client_ids=("shared",),
                completion_id=None,
            )
        )

    async def feedback(self, store, number, tenant, extra):
        self.count += 1
        once = f"once{extra}" if extra else None
        user = "ann" if number % 2 else None
        one = self.make.feedback(
            f"f{self.count}", request_id=f"r{number}", tenant=tenant, idempotency_key=once, user=user
        )
        first = self.once.get((tenant, once)) if once else None
        if first is None:
            self.said[one.id] = one
            if once:
                self.once[tenant, once] = one
            assert await store.commit_feedback(one) == one
        elif first.request_id == one.request_id:
            assert await store.commit_feedback(one) == first
        else:
            with pytest.raises(FeedbackConflict):
                await store.commit_feedback(one)

    async def outcome(self, store, number, tenant, extra):
        ids = sorted(self.said)
        if ids:
            chosen = ids[number % len(ids)]
            self.decided.add(chosen)
            await store.record_outcome(FeedbackOutcome(feedback_id=chosen, status="accepted"))

    async def adapter(self, store, number, tenant, extra):
        self.versions.setdefault(f"m/{tenant}/*", set()).add(number)
        await store.put_adapter(self.make.record(number, key=f"m/{tenant}/*"))

    async def serve(self, store, number, tenant, extra):
        key = f"m/{tenant}/*"
        if number == 0 or number in self.versions.get(key, ()):
            await store.set_current(key, number, reason="test")
            self.current[key] = number
        else:
            with pytest.raises(StateError):
                await store.set_current(key, number, reason="test")

    async def prune(self, store, number, tenant, extra):
        key = f"m/{tenant}/*"
        await store.prune_adapters(key, keep=number)
        have = self.versions.get(key, set())
        newest = set(sorted(have, reverse=True)[:number])
        self.versions[key] = (newest | {self.current.get(key)}) & have

    async def forget(self, store, number, tenant, extra):
        user = "ann" if number else None

        def gone(owner, name):
            return owner == tenant and (user is None or name == user)

        await store.forget(tenant=tenant, user=user)
        mine = {key[1] for key, (_, name) in self.requests.items() if gone(key[0], name)}
        self.requests = {key: value for key, value in self.requests.items() if not gone(key[0], value[1])}
        self.said = {
            id: one
            for id, one in self.said.items()
            if not gone(one.tenant, one.user) and not (one.tenant == tenant and one.request_id in mine)
        }
        self.once = {key: one for key, one in self.once.items() if one.id in self.said}
        if user is None:
            self.versions.pop(f"m/{tenant}/*", None)
            self.current.pop(f"m/{tenant}/*", None)

    async def check(self, store):
        for tenant in "ab":
            mine = {name for owner, name in self.requests if owner == tenant}
            assert set(await store.find_requests("shared", tenant=tenant)) == mine
            assert [one.id for one in await store.feedback(tenant=tenant)] == [
                id for id, one in self.said.items() if one.tenant == tenant
            ]
            have = await store.adapters(f"m/{tenant}/*")
            assert [one.version for one in have] == sorted(self.versions.get(f"m/{tenant}/*", ()))
        assert [one.started_at for one in await store.trajectories(limit=99, after=-1)] == sorted(
            start for start, _ in self.requests.values()
        )
        assert [one.id for one in await store.pending_feedback()] == [
            id for id in self.said if id not in self.decided
        ]
        assert await store.current_versions() == self.current


async def test_the_janitor_outlives_a_file_that_cannot_be_removed(open_store, make, folder, monkeypatch, caplog):
    monkeypatch.setattr("sona_stream.store.sqlite._EXPIRE_EVERY_S", 0.01)
    async with open_store() as store:
        stuck = folder / "backups" / "state-stuck"
        (stuck / "inside").mkdir(parents=True)
        os.utime(stuck, (0, 0))
        async with asyncio.timeout(5):
            while "could not be removed" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        store.submit_trajectory(make.trajectory())
        stuck.rename(folder / "elsewhere")
    async with open_store() as store:
        assert await store.trajectory("r1") is not None
