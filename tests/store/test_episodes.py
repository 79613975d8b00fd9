"""Segments and rows: what is acknowledged is whole after any end, what is erased is gone, space comes back."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sona_stream.config.settings import SonaSettings
from sona_stream.episodes import Episode, KeptQuestion, NewEpisode, Question, key_of, number_of
from sona_stream.lora import HiddenSpace
from sona_stream.store import create_store, maintenance
from sona_stream.store.segments import Segments

SPACE = HiddenSpace(mean=np.zeros(4, np.float32), spread=np.ones(4, np.float32), version="v1")


def new(name="a", *, size=400, **changes):
    values = {
        "key": "",
        "number": 0,
        "model": "m",
        "fingerprint": "fp",
        "scope": "person",
        "tenant": "acme",
        "user": "alice",
        "key_id": "k1",
        "request_id": name,
        "feedback_id": f"f-{name}",
        "kind": "correction",
        "tokens": 3,
        "answer_tokens": 3,
        "nbytes": 0,
        "created_at": 1.0,
        "stored_at": time.time(),
        "question": Question(f"what is {name}?"),
    }
    body = (name.encode() * size)[:size]
    return NewEpisode(
        episode=Episode(**(values | changes)),
        static=bytes(256),
        standing=0.5,
        head=b"head of " + name.encode(),
        body=body,
        space=SPACE,
    )


def whole(store, entry, name, size=400):
    body = store.body(entry.place)
    expected = (name.encode() * size)[:size]
    return store.head(entry.place) == b"head of " + name.encode() and bytes(body)[:size] == expected


def test_keys_name_their_number():
    assert number_of(key_of(4711, 2**63 - 1)) == 4711
    for bad in ("", "x", "1-2", "-0000000000000000", "g-0000000000000000", "1-000000000000000G", "1" * 99):
        assert number_of(bad) is None


async def test_what_is_put_is_found_after_a_restart(open_store):
    async with open_store("text") as store:
        first = await store.episode_store.put(new("a"))
        second = await store.episode_store.put(new("b"), supersede=[first.number])
        assert whole(store.episode_store, first, "a")
    async with open_store("text") as store:
        kept = store.episode_store
        one, two = await kept.entries()
        assert (one.number, one.superseded_by) == (first.number, second.number)
        assert (two, two.rank) == (second, 2)
        assert whole(kept, one, "a")
        assert whole(kept, two, "b")
        (found,) = await kept.find([second.number])
        assert found == dataclasses.replace(
            new("b").episode,
            number=second.number,
            key=key_of(second.number, second.place.stamp),
            nbytes=second.place.length,
            stored_at=found.stored_at,
        )
        ((fingerprint, space),) = await kept.spaces()
        assert (fingerprint, space.version) == ("fp", "v1")
        assert [one.request_id for one in await kept.latest(tenant="acme", limit=1)] == ["b"]
        assert await kept.latest(tenant="other") == []


async def test_what_is_dropped_is_overwritten(open_store, folder):
    async with open_store() as store:
        kept = store.episode_store
        entries = [await kept.put(new(name)) for name in ("needle", "stays", "needlf")]
        dropped = await kept.drop([entries[0].number, entries[2].number])
        assert dropped.numbers == [entries[0].number, entries[2].number]
        assert kept.head(entries[0].place) is None
        assert kept.body(entries[2].place) is None
        assert whole(kept, entries[1], "stays")
        data = (folder / "episodes" / "00000001.seg").read_bytes()
        assert b"needl" not in data
    assert b"needl" not in b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    assert maintenance.verify(folder).ok


async def test_retention_and_forgetting_reach_episodes(open_store):
    async with open_store("text", ttl_days=(30, 1)) as store:
        kept, told = store.episode_store, []
        kept.on_removed = lambda dropped: told.extend(dropped.numbers)
        now = time.time()
        await kept.put(new("old", stored_at=now - 86400 * 40))
        aging = await kept.put(new("aging", stored_at=now - 86400 * 5))
        bobs = await kept.put(new("bobs", user="bob"))
        await store.expire()
        assert told == [1]
        found = {one.number: one for one in await kept.latest()}
        assert found[aging.number].question is None
        assert found[bobs.number].question == Question("what is bobs?")
        assert (await store.forget(tenant="acme", user="bob"))["episodes"] == 1
        assert told == [1, bobs.number]
        assert (await store.forget(tenant="other"))["episodes"] == 0
        assert (await store.forget(tenant="acme"))["episodes"] == 1
        assert await kept.entries() == []


async def test_what_others_said_of_a_persons_request_goes_with_the_person(open_store, make, folder):
    async with open_store("text") as store:
        kept, told = store.episode_store, []
        kept.on_removed = told.append
        store.submit_trajectory(make.trajectory("asked", user="alice"))
        judge = {"user": None, "key_id": "reviewer"}
        other = await kept.put(new("bobs", question=Question("needle of bob?"), **judge))
        about = new("asked", question=Question("needle of alice?"), **judge)
        of_alice = await kept.put(about, supersede=[other.number])
        await kept.put(new("asked", tenant="elsewhere", **judge))
        bob = await kept.put(new("more", user="bob"), supersede=[of_alice.number])
        assert (await store.forget(tenant="acme", user="alice"))["episodes"] == 1
        ((numbers, returned),) = [(one.numbers, one.returned) for one in told]
        assert (numbers, returned) == ([of_alice.number], [])
        found = {one.number: one.superseded_by for one in await kept.entries()}
        assert found == {other.number: bob.number, 3: None, bob.number: None}
        again = await kept.put(dataclasses.replace(about), supersede=[bob.number])
        store.submit_trajectory(make.trajectory("asked", user="alice"))
        await store.forget(tenant="acme", user="alice")
        assert (told[1].numbers, [one.number for one in told[1].returned]) == ([again.number], [bob.number])
    data = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"needle of alice" not in data
    assert b"needle of bob" in data


@pytest.mark.parametrize(("storage", "text_days"), [("features", 30), ("text", 30), ("text", 5), ("text", 40)])
async def test_what_others_said_late_goes_with_the_person_after_the_request_expired(
    open_store, make, folder, storage, text_days
):
    day = 86400.0
    now = time.time()
    judge = {"user": None, "key_id": "reviewer"}

    def late(request_id):
        question = Question(f"needle of {request_id}?") if storage == "text" else None
        return new(request_id, question=question, stored_at=now + 29 * day, **judge)

    async with open_store(storage, ttl_days=(30, text_days)) as store:
        kept = store.episode_store
        for request_id, user in (
            ("alices", "alice"),
            ("bobs", "bob"),
            ("keys", None),
            ("unsaid", "alice"),
            ("own", "al"),
        ):
            store.submit_trajectory(make.trajectory(request_id, user=user))
        for request_id in ("alices", "bobs", "keys"):
            await kept.put(late(request_id))
        await kept.put(new("unsaid", tenant="elsewhere", stored_at=now + 29 * day, **judge))
        await kept.put(new("own", user="al", stored_at=now + 29 * day))
        longest = max(30, text_days)
        assert (await store.expire(now=now + (longest + 1) * day))["trajectories"] == 3
        for request_id, user in (("alices", "alice"), ("bobs", "bob")):
            row = await store.trajectory(request_id)
            assert (row.user, row.token_ids, row.client_ids, row.query, row.body) == (user, (), (), None, None)
        assert await store.trajectory("keys") is None
        assert not any((await store.expire(now=now + (longest + 1) * day)).values()), "nothing is left to do"
        assert (await store.forget(tenant="acme", user="alice"))["episodes"] == 1
        assert {one.request_id for one in await kept.latest()} == {"bobs", "keys", "unsaid", "own"}
        assert await store.trajectory("alices") is None
        removed = await store.expire(now=now + 60 * day)
        assert (removed["episodes"], removed["trajectories"]) == (4, 1)
    data = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"needle of alice" not in data


async def test_nobody_stays_known_by_what_is_remembered_where_nothing_may(open_store, make):
    async with open_store("features") as store:
        store.submit_trajectory(make.trajectory("r1", user="alice"))
        await store.episode_store.put(new("r1", user=None, key_id="reviewer"))
    async with open_store("none") as store:
        assert (await store.trajectory("r1")).user is None
        assert await store.episode_store.entries() == []


async def test_questions_without_text_expire_and_are_forgotten(open_store):
    async with open_store(ttl_days=(30, 30)) as store:
        kept = store.episode_store
        await kept.keep_questions([KeptQuestion("acme", user, f"r-{user}", b"v1") for user in ("ann", "bob", None)])
        await kept.keep_questions(
            [KeptQuestion("acme", "ann", "r-ann", b"v2"), KeptQuestion("b", None, "r-x", b"v")]
        )
        assert await kept.question("acme", "r-ann") == b"v2"
        assert await kept.question("b", "r-ann") is None
        assert (await store.forget(tenant="acme", user="ann"))["questions"] == 1
        assert await kept.question("acme", "r-ann") is None
        assert await kept.question("acme", "r-bob") == b"v1"
        assert (await store.forget(tenant="acme"))["questions"] == 2
        await store.expire(now=time.time() + 86400 * 29)
        assert await kept.question("b", "r-x") == b"v"
        assert (await store.expire(now=time.time() + 86400 * 31))["questions"] == 1
        assert await kept.question("b", "r-x") is None


async def test_what_expires_is_counted_and_said(open_store, caplog):
    async with open_store() as store:
        kept = store.episode_store
        await kept.put(new("old", stored_at=time.time() - 86400 * 29))
        await kept.put(new("young"))
        with caplog.at_level("INFO", logger="sona_stream.store"):
            await store.expire(now=time.time() + 86400 * 2)
        assert kept.expired == 1
        assert "1 remembered answers expired after 30 days (sona.storage_options.features_ttl_days)" in caplog.text


@pytest.mark.parametrize("limit", [1, 2, 50])
async def test_those_of_another_model_are_walked_in_pages(open_store, limit):
    async with open_store("text") as store:
        kept = store.episode_store
        for i in range(5):
            await kept.put(new(f"old{i}", fingerprint="before"))
            await kept.put(new(f"new{i}"))
            await kept.put(new(f"other{i}", model="m2", fingerprint="before"))
        found, below = [], None
        while page := await kept.stale("m", "fp", below=below, limit=limit):
            assert len(page) <= limit
            found += [one.request_id for one in page]
            below = page[-1].number
        assert found == [f"old{i}" for i in reversed(range(5))]


async def test_space_is_given_back(open_store, folder):
    async with open_store() as store:
        kept = store.episode_store
        store._session.segments._segment_bytes = 4000
        entries = [await kept.put(new(f"n{i}")) for i in range(40)]
        segments = sorted((folder / "episodes").glob("*.seg"))
        assert len(segments) > 3
        await kept.drop([entry.number for entry in entries if entry.number % 10])
        moved = {}
        while some := await kept.compact():
            moved |= some
        await kept.compact()
        assert moved
        for entry in entries:
            if entry.number % 10 == 0:
                place = moved.get(entry.number, entry.place)
                assert whole(kept, entry._replace(place=place), f"n{entry.number - 1}")
        assert len(list((folder / "episodes").glob("*.seg"))) < len(segments)
    async with open_store() as store:
        for entry in await store.episode_store.entries():
            assert whole(store.episode_store, entry, f"n{entry.number - 1}")
    assert maintenance.verify(folder).ok


async def test_backup_and_restore_bring_episodes_along(open_store, folder, tmp_path):
    async with open_store() as store:
        kept = store.episode_store
        gone = await kept.put(new("gone"))
        await kept.put(new("kept"))
        await kept.drop([gone.number])
        report = maintenance.backup(folder, tmp_path / "copy.tar")
        assert report.ok
        assert report.rows["episodes"] == 1
        await kept.put(new("later"))
    maintenance.restore(tmp_path / "copy.tar", folder, force=True)
    async with open_store() as store:
        (entry,) = await store.episode_store.entries()
        assert whole(store.episode_store, entry, "kept")
        after = await store.episode_store.put(new("after"))
        assert whole(store.episode_store, after, "after")
    report = maintenance.verify(folder)
    assert report.ok
    assert report.orphans == ()


async def test_damage_is_seen_and_named(open_store, folder):
    async with open_store() as store:
        entry = await store.episode_store.put(new("a"))
    segment = folder / "episodes" / "00000001.seg"
    data = bytearray(segment.read_bytes())
    data[-200] ^= 1
    segment.write_bytes(data)
    report = maintenance.verify(folder)
    assert not report.ok
    assert f"episode {entry.number}" in report.problems[0]
    async with open_store() as store:
        assert store.episode_store.head(entry.place) is not None
        assert store.episode_store.body(entry.place) is None


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), dropped=st.sets(st.integers(0, 5), max_size=4), torn=st.binary(max_size=90))
async def test_a_segment_cut_anywhere_leaves_no_half_episode(tmp_path_factory, cut, dropped, torn):
    folder = tmp_path_factory.mktemp("cut")
    names = [f"name{i}" for i in range(6)]
    async with create_store(SonaSettings(), directory=folder) as store:
        entries = [await store.episode_store.put(new(name)) for name in names]
        await store.episode_store.drop([entries[i].number for i in dropped])
    segment = folder / "episodes" / "00000001.seg"
    keep = round(cut * segment.stat().st_size)
    os.truncate(segment, keep)
    with segment.open("ab") as file:
        file.write(torn)  # what a crash may leave behind the last row
    async with create_store(SonaSettings(), directory=folder) as store:
        kept = store.episode_store
        present = {entry.number: entry for entry in await kept.entries()}
        for i, entry in enumerate(entries):
            if i in dropped:
                assert entry.number not in present
            elif entry.place.offset + entry.place.length <= keep:
                assert whole(kept, present[entry.number], names[i])
            elif entry.number in present:  # the torn end reached as far: the record is seen to be damaged
                assert kept.body(entry.place) is None
        added = await kept.put(new("added"))
        assert whole(kept, added, "added")
        assert all(whole(kept, e, names[e.number - 1]) for e in present.values() if kept.body(e.place) is not None)


CHILD = """
import asyncio, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_episodes import new, SPACE
from sona_stream.config.settings import SonaSettings
from sona_stream.store import create_store

async def main():
    async with create_store(SonaSettings(), directory=Path(sys.argv[1])) as store:
        print("open", flush=True)
        n = 0
        while True:
            entry = await store.episode_store.put(new(f"e{n}", size=20000))
            print("put", entry.number, n, flush=True)
            if n % 3 == 2:
                gone = (await store.episode_store.drop([entry.number - 1])).numbers
                print("dropped", *gone, flush=True)
            n += 1

asyncio.run(main())
"""


def live_and_die(folder):
    """What the child said before it was killed."""
    log = folder.with_name("said")
    with (
        log.open("w") as out,
        subprocess.Popen([sys.executable, "-c", CHILD, folder, os.path.dirname(__file__)], stdout=out) as child,
    ):
        while "put" not in log.read_text() and child.poll() is None:
            time.sleep(0.02)
        time.sleep(0.7)
        child.send_signal(signal.SIGKILL)
    return log.read_text()


async def test_kill_at_any_moment_leaves_whole_episodes(open_store, folder):
    said = live_and_die(folder)
    lines = [line.split() for line in said[: said.rfind("\n")].splitlines()]
    put = {int(words[1]): f"e{words[2]}" for words in lines if words[0] == "put"}
    dropped = {int(word) for words in lines if words[0] == "dropped" for word in words[1:]}
    assert put
    async with open_store() as store:
        present = {entry.number: entry for entry in await store.episode_store.entries()}
        last = max(put)
        for number, name in put.items():
            if number in dropped:
                assert number not in present
            elif number != last - 1:  # that one may be on its way out
                assert whole(store.episode_store, present[number], name, 20000)
        assert all(store.episode_store.body(entry.place) is not None for entry in present.values())
    report = maintenance.verify(folder)
    assert report.ok, report.problems
    assert report.orphans == ()


def test_a_record_of_another_stamp_is_not_mistaken_for_this(tmp_path):
    segments = Segments(tmp_path)
    first = segments.append(b"head", b"body")
    other = Segments(tmp_path)
    assert other.recover([]) == []
    second = other.append(b"HEAD", b"BODY")
    assert second[:3] == first[:3]
    assert other.read(first) is None
    assert other.is_sound(second)


@pytest.mark.parametrize("size", [0, 1, 31, 4096])
def test_any_size_of_body(tmp_path, size):
    segments = Segments(tmp_path)
    places = [segments.append(bytes([i]) * 3, bytes([i]) * size) for i in range(5)]
    for i, place in enumerate(places):
        record = segments.read(place)
        assert record.checked_head() == bytes([i]) * 3
        assert bytes(record.checked_body())[:size] == bytes([i]) * size
