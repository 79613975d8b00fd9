"""A clock that leaps deletes nothing at once; what is truly old goes an hour later."""

from __future__ import annotations

import sqlite3
import time

import pytest

from sona_stream.store import clock

DAY, HOUR = 86400.0, 3600.0


@pytest.fixture
def at(monkeypatch):
    """Sets the clock this many seconds ahead of the true time."""
    true = time.time

    def leap(seconds):
        monkeypatch.setattr(time, "time", lambda: true() + seconds)

    return leap


async def kept(store):
    return [one.id for one in await store.feedback()]


async def test_one_start_with_a_clock_far_ahead_deletes_nothing(open_store, make, at, folder, caplog):
    async with open_store() as store:
        await store.commit_feedback(make.feedback())
    (folder / "backups").mkdir()
    (folder / "backups" / "state-v2-x.sqlite3").write_bytes(b"x")
    at(3 * 365 * DAY)
    async with open_store() as store:
        assert await kept(store) == ["f1"]
    assert "the clock is 1095 days ahead" in caplog.text
    assert (folder / "backups" / "state-v2-x.sqlite3").exists()
    caplog.clear()
    at(60.0)
    async with open_store() as store:
        assert await kept(store) == ["f1"]
    assert caplog.text == ""
    at(40 * DAY)
    async with open_store() as store:
        assert await kept(store) == ["f1"], "a leap that was taken back does not count for the next"


@pytest.mark.parametrize("restarts", [True, False])
async def test_after_a_year_in_a_cupboard_the_old_goes_an_hour_late(open_store, make, at, caplog, restarts):
    async with open_store() as store:
        await store.commit_feedback(make.feedback())
    for later in (0.0, 0.5 * HOUR):
        at(365 * DAY + later)
        async with open_store() as store:
            assert await kept(store) == ["f1"]
            assert await store.expire() == {}
            assert await store.expire(now=time.time() - 360 * DAY) != {}, "a given time is believed"
            if later and not restarts:
                at(365 * DAY + HOUR)
                assert (await store.expire())["feedback"] == 1
    assert caplog.text.count("days ahead") == 1
    if restarts:
        at(380 * DAY)
        async with open_store() as store:
            assert await kept(store) == []
            assert (await store.expire())["feedback"] == 0


@pytest.mark.parametrize("days", [1, 29])
async def test_shorter_breaks_delay_nothing(open_store, make, at, days):
    async with open_store() as store:
        await store.commit_feedback(make.feedback())
    at(20 * DAY)
    async with open_store() as store:
        assert await kept(store) == ["f1"]
    at((20 + days) * DAY)
    async with open_store() as store:
        assert await kept(store) == (["f1"] if days == 1 else [])


async def test_the_shortest_limit_counts(open_store, make, at):
    async with open_store("text", ttl_days=(30, 2)) as store:
        store.submit_trajectory(make.trajectory())
    at(3 * DAY)
    async with open_store("text", ttl_days=(30, 2)) as store:
        assert (await store.trajectory("r1")).query == "why?"
        at(3 * DAY + HOUR)
        await store.expire()
        assert (await store.trajectory("r1")).query is None


def test_a_clock_that_starts_in_1970_is_believed_an_hour_after_it_is_set():
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL)")

    def looks(*times):
        return [clock.believed(connection, now, DAY) for now in times]

    assert looks(1000.0, 1000.0 + HOUR) == [True, True]
    assert looks(2e9, 2e9 + 1000, 2e9 + HOUR, 2e9 + 2 * HOUR) == [False, False, True, True]
    assert looks(1000.0, 2e9, 1.9e9, 1.9e9 + HOUR) == [True, False, False, True]
