"""`state backup` and `state verify` while a server moves, prunes and drops what they are about to read."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from sona_stream.episodes import Episode, NewEpisode
from sona_stream.lora import HiddenSpace
from sona_stream.store import maintenance, segment_copies
from sona_stream.store.files import StateFiles
from sona_stream.store.segments import Segments

SPACE = HiddenSpace(mean=np.zeros(4, np.float32), spread=np.ones(4, np.float32), version="v1")


def new(name):
    episode = Episode(
        key="",
        number=0,
        model="m",
        fingerprint="fp",
        scope="person",
        tenant="acme",
        user="alice",
        key_id="k1",
        request_id=name,
        feedback_id=f"f-{name}",
        kind="correction",
        tokens=3,
        answer_tokens=3,
        nbytes=0,
        created_at=1.0,
        stored_at=time.time(),
    )
    head, body = b"head of " + name.encode(), name.encode() * 150
    return NewEpisode(episode=episode, static=bytes(256), standing=0.5, head=head, body=body, space=SPACE)


def whole(store, entry):
    name = b"n%d" % (entry.number - 1)
    body = store.body(entry.place)
    return store.head(entry.place) == b"head of " + name and bytes(body).startswith(name * 150)


def once_before(monkeypatch, owner, name, action):
    """`action` on the event loop, finished before `owner.name` goes on for the first time."""
    loop, real, done = asyncio.get_running_loop(), getattr(owner, name), []

    def later(*arguments):
        if not done:
            done.append(True)
            asyncio.run_coroutine_threadsafe(action(), loop).result()
        return real(*arguments)

    monkeypatch.setattr(owner, name, later)
    return done


async def several(store):
    """Two in a first segment that is more than half dead, and those behind."""
    store._session.segments._segment_bytes = 3000
    entries = [await store.episode_store.put(new(f"n{i}")) for i in range(12)]
    first = [entry for entry in entries if entry.place.segment == 1]
    await store.episode_store.drop([entry.number for entry in first[2:]])
    return [*first[:2], *entries[len(first) :]]


async def compacted(store):
    """As the hourly upkeep: records move, then the segment that they left goes."""
    while await store.episode_store.compact():
        pass
    await store.episode_store.compact()


async def test_a_backup_has_what_is_moved_while_it_is_made(open_store, folder, tmp_path, monkeypatch):
    async with open_store() as store:
        kept = await several(store)
        done = once_before(monkeypatch, segment_copies, "copy", lambda: compacted(store))
        report = await asyncio.to_thread(maintenance.backup, folder, tmp_path / "b")
        assert done
        assert report.problems == ()
    assert maintenance.restore(tmp_path / "b", tmp_path / "new").ok
    folder.rename(tmp_path / "old")
    (tmp_path / "new").rename(folder)
    async with open_store() as store:
        entries = await store.episode_store.entries()
        assert [entry.number for entry in entries] == [entry.number for entry in kept]
        assert all(whole(store.episode_store, entry) for entry in entries)


async def test_what_an_older_snapshot_named_is_not_in_the_backup(open_store, folder, tmp_path, monkeypatch):
    async with open_store() as store:
        kept = await several(store)
        records = []

        async def upkeep():
            await compacted(store)
            await store.episode_store.drop([one.number for one in kept[3:]])

        def raw(segments, place):
            records.append(place)
            if len(records) == len(kept):  # all others are copied by now
                asyncio.run_coroutine_threadsafe(upkeep(), loop).result()
            return real(segments, place)

        loop, real = asyncio.get_running_loop(), Segments.raw
        monkeypatch.setattr(Segments, "raw", raw)
        report = await asyncio.to_thread(maintenance.backup, folder, tmp_path / "b")
        assert report.problems == ()
        assert report.rows["episodes"] == 3
    data = b"".join(path.read_bytes() for path in (tmp_path / "b" / "episodes").iterdir())
    assert b"head of n0" in data
    assert not [one.number for one in kept[3:] if b"head of n%d" % (one.number - 1) in data]


async def test_what_is_truly_damaged_is_told_beside_what_moved(open_store, folder, tmp_path, monkeypatch):
    async with open_store() as store:
        kept = await several(store)
        place = kept[-1].place
        segment, near_end = folder / "episodes" / f"{place.segment:08d}.seg", place.offset + place.length - 100
        data = segment.read_bytes()
        segment.write_bytes(data[:near_end] + b"\xa5" * 50 + data[near_end + 50 :])
        once_before(monkeypatch, segment_copies, "copy", lambda: compacted(store))
        report = await asyncio.to_thread(maintenance.backup, folder, tmp_path / "b")
        assert [problem.split(":")[0] for problem in report.problems] == [f"episode {kept[-1].number}"]


async def test_verify_calls_nothing_damaged_that_was_moved_or_pruned(open_store, make, folder, monkeypatch):
    async with open_store() as store:
        await several(store)
        for version in range(1, 6):
            await store.put_adapter(make.record(version))
        await store.set_current(make.key, 5, reason="step")
        done = [
            once_before(monkeypatch, StateFiles, "read", lambda: store.prune_adapters(make.key, keep=2)),
            once_before(monkeypatch, Segments, "is_sound", lambda: compacted(store)),
            once_before(monkeypatch, StateFiles, "present", lambda: store.put_adapter(make.record(6))),
        ]
        report = await asyncio.to_thread(maintenance.verify, folder)
        assert all(done)
        assert report.problems == ()
        assert report.orphans == ()
        next((folder / "adapters").rglob("v5.*")).unlink()
        assert len((await asyncio.to_thread(maintenance.verify, folder)).problems) == 1
