"""Writes that need each other: all of them or none, through faults and a kill between files and rows."""

from __future__ import annotations

import dataclasses
import os

import pytest

from sona_stream.errors import StateError
from sona_stream.events import FeedbackOutcome
from sona_stream.lora import LoraWeights, LowRank
from sona_stream.store import maintenance


def outcome(feedback_id="f1"):
    return FeedbackOutcome(feedback_id=feedback_id, status="accepted")


async def test_all_of_it_or_nothing(open_store, make, folder):
    async with open_store() as store:
        await store.commit_feedback(make.feedback("f1"))
        writes = store.together()
        writes.put_capture(make.key, make.capture(), 1.0, feedback_id="f1")
        writes.put_adapter(make.record(1))
        writes.put_blob("counted", b"1")
        writes.record_outcome(outcome())
        writes.set_current(make.key, 7, reason="there is no such version")
        with pytest.raises(StateError, match="no version 7"):
            await writes.commit()
        assert await store.adapters() == []
        assert await store.captures(make.key, limit=9) == []
        assert await store.get_blob("counted") is None
        assert await store.outcome("f1") is None
        assert len(maintenance.verify(folder).orphans) == 2, "files that came ahead of rows that did not"
    async with open_store() as store:
        assert maintenance.verify(folder).orphans == ()
        writes = store.together()
        writes.put_capture(make.key, make.capture(), 1.0, feedback_id="f1")
        writes.put_adapter(make.record(1))
        await writes.commit()
        writes.set_current(make.key, 1, reason="step")
        writes.prune_adapters(make.key, keep=1)
        writes.put_blob("counted", b"1")
        writes.record_outcome(outcome())
        await writes.commit()
    async with open_store() as store:
        assert await store.current_versions() == {make.key: 1}
        assert len(await store.captures(make.key, limit=9)) == 1
        assert await store.get_blob("counted") == b"1"
        assert await store.outcome("f1") == outcome()
    assert maintenance.verify(folder).ok


async def test_what_came_with_a_feedback_goes_everywhere_and_its_file_with_the_last_of_it(open_store, make, folder):
    other, place = f"{make.key}:other", f"{make.key}:domain"
    async with open_store() as store:
        for key, feedback_id in ((make.key, "f1"), (place, "f1"), (other, "f2"), (place, "f2")):
            await store.put_capture(key, make.capture(), 1.0, feedback_id=feedback_id)
        assert len(list((folder / "captures").iterdir())) == 1, "the same answer is one file"
        writes = store.together()
        writes.drop_captures(feedback_id="f1")
        writes.put_blob("said", b"1")
        assert len(await store.captures(make.key, limit=9)) == 1, "not before the commit"
        await writes.commit()
        kept = [[one[2] for one in await store.captures(key, limit=9)] for key in (make.key, place, other)]
        assert kept == [[], ["f2"], ["f2"]]
        assert maintenance.verify(folder).ok
        writes.drop_captures(key=place)
        await writes.commit()
        assert await store.captures(place, limit=9) == []
        assert len(await store.captures(other, limit=9)) == 1
        writes.drop_captures(feedback_id="f2")
        writes.drop_captures()
        await writes.commit()
        assert list((folder / "captures").iterdir()) == []
        assert await store.get_blob("said") == b"1"


async def test_a_file_that_cannot_come_ahead_comes_with_the_commit_or_is_said(
    open_store, make, folder, monkeypatch
):
    real = os.fsync

    def no_space(fd):
        raise OSError(28, "No space left on device")

    async with open_store() as store:
        monkeypatch.setattr(os, "fsync", no_space)
        writes = store.together()
        writes.put_adapter(make.record(1))
        await store._open().write(lambda c: None)
        assert store.counters()["write_errors"] == 1
        assert not [path for path in (folder / "adapters").rglob("*") if path.is_file()]
        writes.put_blob("counted", b"1")
        with pytest.raises(StateError, match="free some space"):
            await writes.commit()
        assert await store.get_blob("counted") is None
        writes = store.together()
        writes.put_adapter(make.record(1))
        await store._open().write(lambda c: None)
        monkeypatch.setattr(os, "fsync", real)
        await writes.commit()
        assert await store.adapter(make.key, 1) is not None


async def test_a_file_that_leaves_between_comes_again(open_store, make, folder):
    """Another write may have been the last to name it."""
    async with open_store() as store:
        writes = store.together()
        writes.put_capture(make.key, make.capture(), 1.0, feedback_id="f1")
        await store._open().write(lambda c: None)
        [file] = [path for path in (folder / "captures").iterdir() if path.is_file()]
        file.unlink()
        await writes.commit()
        assert len(await store.captures(make.key, limit=9)) == 1


def adapter_files(folder):
    return sorted(path.name.split(".")[0] for path in (folder / "adapters").rglob("*.safetensors"))


async def test_what_was_expected_is_there_before_it_is_put_and_goes_when_it_is_not(open_store, make, folder):
    one, two = make.record(1), make.record(2)
    async with open_store() as store:
        writes = store.together()
        for record in (one, two):
            writes.expect_adapter(record.key, record.version, record.weights, record.moments)
        await store._open().write(lambda c: None)
        assert adapter_files(folder) == ["v1", "v2"]
        assert await store.adapters() == []
        writes.put_adapter(two)
        await writes.commit()
        assert adapter_files(folder) == ["v2"]
        assert [record.version for record in await store.adapters()] == [2]
        writes.expect_adapter(one.key, 1, one.weights, one.moments)
        await writes.commit()
        assert adapter_files(folder) == ["v2"], "also where nothing else was to be written"
        writes.expect_adapter(two.key, 2, two.weights, two.moments)
        await writes.commit()
        assert adapter_files(folder) == ["v2"], "a version that is kept stays"
        assert maintenance.verify(folder).ok


async def test_other_weights_than_expected_are_what_is_kept(open_store, make, folder):
    expected, record = make.record(1), make.record(1)
    weights = LoraWeights(LowRank(record.weights.micro.lora_A + 1, record.weights.micro.lora_B))
    async with open_store() as store:
        writes = store.together()
        writes.expect_adapter(expected.key, 1, expected.weights, expected.moments)
        writes.put_adapter(dataclasses.replace(record, weights=weights))
        await writes.commit()
        kept = await store.adapter(record.key, 1)
        assert (kept.weights.micro.lora_A == weights.micro.lora_A).all()
        assert adapter_files(folder) == ["v1"]
        assert maintenance.verify(folder).ok


async def test_nothing_of_an_answer_reaches_the_disk_where_nothing_may(open_store, make, folder):
    async with open_store("none") as store:
        writes = store.together()
        writes.put_capture(make.key, make.capture(), 1.0, feedback_id="f1")
        await writes.commit()
        await store._open().write(lambda c: None)
        assert not list((folder / "captures").rglob("*.safetensors"))
