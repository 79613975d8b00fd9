"""Adapters and captures: round trips, versions, pruning, damage."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import time

import numpy as np
import pytest

from sona_stream.errors import StateError


def tensor_files(folder, kind):
    return sorted(path.relative_to(folder).as_posix() for path in (folder / kind).rglob("*") if path.is_file())


def assert_same_record(left, right):
    for name in (
        "key",
        "version",
        "parent",
        "fingerprint",
        "status",
        "reason",
        "metrics",
        "feedback_ids",
        "created_at",
    ):
        assert getattr(left, name) == getattr(right, name)
    for one, other in ((left.weights.micro, right.weights.micro), (left.weights.base, right.weights.base)):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.scaling == other.scaling
            np.testing.assert_array_equal(one.lora_A, other.lora_A)
            np.testing.assert_array_equal(one.lora_B, other.lora_B)
    assert left.moments.keys() == right.moments.keys()
    for name in left.moments:
        np.testing.assert_array_equal(left.moments[name], right.moments[name])


async def test_adapters_round_trip(open_store, make):
    given = [make.record(1, base=False, moments={}), make.record(2), make.record(1, key="m/other/*")]
    async with open_store() as store:
        for record in given:
            await store.put_adapter(record)
        await store.set_current(make.key, 2, reason="step")
    async with open_store() as store:
        assert_same_record(await store.adapter(make.key, 1), given[0])
        assert_same_record(await store.adapter(make.key, 2), given[1])
        assert await store.adapter(make.key, 3) is None
        assert [(one.key, one.version) for one in await store.adapters()] == [
            ("m/other/*", 1),
            (make.key, 1),
            (make.key, 2),
        ]
        assert [one.version for one in await store.adapters(make.key)] == [1, 2]
        assert await store.current_versions() == {make.key: 2}
        await store.set_current(make.key, 0, reason="rollback")
        assert await store.current_versions() == {make.key: 0}


async def test_a_version_can_be_replaced(open_store, make, folder):
    async with open_store() as store:
        await store.put_adapter(make.record(1))
        await store.put_adapter(make.record(1, status="rolled_back"))
        assert len(tensor_files(folder, "adapters")) == 1
        assert (await store.adapter(make.key, 1)).status == "rolled_back"
        other = make.record(1, seed=5)
        await store.put_adapter(other)
        assert_same_record(await store.adapter(make.key, 1), other)
        assert len(tensor_files(folder, "adapters")) == 1


async def test_only_known_versions_and_wellformed_keys(open_store, make):
    async with open_store() as store:
        with pytest.raises(StateError, match="no version 4"):
            await store.set_current(make.key, 4, reason="x")
        with pytest.raises(StateError, match="model/tenant/group"):
            await store.put_adapter(make.record(key="nonsense"))
        assert await store.current_versions() == {}


async def test_strange_keys_get_folders_of_their_own(open_store, make, folder):
    keys = ["a/b/../../etc", "a/b/c", "a b/b/c", "\u4f60/\u597d/*", "x" * 300 + "/t/*"]
    async with open_store() as store:
        for key in keys:
            await store.put_adapter(make.record(key=key))
        assert sorted(one.key for one in await store.adapters()) == sorted(keys)
    parents = {name.rsplit("/", 1)[0] for name in tensor_files(folder, "adapters")}
    assert len(parents) == len(keys)


async def test_pruning_keeps_the_newest_and_the_served_one(open_store, make, folder):
    async with open_store() as store:
        for version in range(1, 8):
            await store.put_adapter(make.record(version))
        await store.set_current(make.key, 2, reason="rollback")
        await store.prune_adapters(make.key, keep=3)
        assert [one.version for one in await store.adapters(make.key)] == [2, 5, 6, 7]
        assert len(tensor_files(folder, "adapters")) == 4


async def test_pruning_leaves_older_versions_at_growing_distances(open_store, make):
    """As versions come one by one. Whoever must go back goes at most four times as far, or to the very first."""
    keep, older, others = 4, 5, {10: "rolled_back", 11: "canary", 12: "observed"}
    async with open_store() as store:
        for version in range(1, 201):
            await store.put_adapter(make.record(version, status=others.get(version, "published")))
            await store.set_current(make.key, version, reason="step")
            await store.prune_adapters(make.key, keep=keep, older=older)
            ages = [version - one.version for one in await store.adapters(make.key)]
            assert len(ages) <= keep + older
            assert ages[-keep:] == list(range(min(version, keep)))[::-1]
            assert ages[0] == version - 1
            for age in range(keep, min(version, keep * 2 ** (older - 2))):
                assert any(age <= one <= 4 * age for one in ages), (version, age)
        kept = [one.version for one in await store.adapters(make.key)]
        assert not set(kept) & set(others)
        await store.put_adapter(make.record(201, fingerprint="another model"))
        await store.prune_adapters(make.key, keep=keep, older=older)
        assert [one.version for one in await store.adapters(make.key)] == [198, 199, 200, 201]


@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
async def test_a_damaged_version_gives_way_to_the_one_before(open_store, make, folder, caplog, harm):
    async with open_store() as store:
        await store.put_adapter(make.record(1))
        await store.put_adapter(make.record(2, status="observed"))
        await store.put_adapter(make.record(3))
        await store.set_current(make.key, 3, reason="step")
    (path,) = folder.glob("adapters/*/v3.*")
    data = bytearray(path.read_bytes())
    if harm == "gone":
        path.unlink()
    else:
        data[-1] ^= 1
        path.write_bytes(data[: len(data) // 2] if harm == "cut" else data)
    async with open_store() as store:
        assert await store.current_versions() == {make.key: 1}
        assert await store.adapter(make.key, 3) is None
        assert [one.version for one in await store.adapters()] == [1, 2]
    assert "version 3 is damaged, version 1 is served" in caplog.text


async def test_orphans_are_removed_at_open(open_store, make, folder):
    async with open_store() as store:
        await store.put_adapter(make.record(1))
    strays = [folder / "adapters/x/v9.0.safetensors", folder / "captures/c.1.safetensors.tmp"]
    for stray in strays:
        stray.parent.mkdir(exist_ok=True, parents=True)
        stray.write_bytes(b"half")
    leftover = folder / ".sona-state-abc"
    leftover.mkdir()
    async with open_store() as store:
        assert not any(stray.exists() for stray in (*strays, leftover))
        assert await store.adapter(make.key, 1) is not None


async def test_captures_round_trip_in_half_precision(open_store, make):
    given = make.capture(tokens=5)
    big = make.capture("r2", seed=3)
    big.hidden[1] *= 1e6
    empty = make.capture("r3", tokens=0)
    async with open_store() as store:
        for one, capture in enumerate((given, big, empty)):
            await store.put_capture(make.key, capture, one - 0.5, feedback_id=f"f{one}")
    async with open_store() as store:
        found = await store.captures(make.key, limit=10)
        assert [(advantage, id) for _, advantage, id in found] == [(-0.5, "f0"), (0.5, "f1"), (1.5, "f2")]
        for (back, _, _), capture in zip(found, (given, big, empty), strict=True):
            for name in ("request_id", "fingerprint", "adapter_key", "temperature", "handle"):
                assert getattr(back, name) == getattr(capture, name)
            for name in ("prompt_ids", "token_ids", "logprobs", "adapter_versions"):
                np.testing.assert_array_equal(getattr(back, name), getattr(capture, name))
            assert back.hidden.dtype == np.float32
            assert back.hidden.shape == capture.hidden.shape
            scale = np.abs(capture.hidden).max(axis=1, keepdims=True, initial=1e-9)
            assert (np.abs(back.hidden - capture.hidden) <= scale * 2**-11).all()
        assert [id for _, _, id in await store.captures(make.key, limit=2)] == ["f1", "f2"]


async def test_captures_are_bounded_and_shared_along_the_key_chain(open_store, make, folder):
    async with open_store(replay_capacity=3) as store:
        for number in range(6):
            for group in ("*", "CodeGen"):
                capture = make.capture(f"r{number}", seed=number)
                await store.put_capture(f"m/acme/{group}", capture, 1.0, feedback_id=f"f{number}")
        await store.put_capture("m/acme/*", make.capture("r5", seed=5), -1.0, feedback_id="f5")
        for group in ("*", "CodeGen"):
            found = await store.captures(f"m/acme/{group}", limit=10)
            assert [id for _, _, id in found] == ["f3", "f4", "f5"]
        assert (await store.captures("m/acme/*", limit=1))[0][1] == -1.0
        assert len(tensor_files(folder, "captures")) == 3


async def test_an_answer_that_is_kept_again_gets_no_younger_and_stays_the_same_persons(open_store, make, folder):
    def rows(change=""):
        with contextlib.closing(sqlite3.connect(folder / "state.sqlite3")) as connection, connection:
            connection.execute(change or "SELECT 1")
            return connection.execute("SELECT key, stored_at, user FROM captures ORDER BY seq").fetchall()

    async with open_store() as store:
        await store.put_capture("m/acme/*", make.capture("r0", seed=1), 1.0, feedback_id="f0")
    long_ago = round(time.time()) - 1000.5
    rows(f"UPDATE captures SET stored_at = {long_ago}, user = x'ab'")
    async with open_store() as store:
        ((back, _, _),) = await store.captures("m/acme/*", limit=1)
        await store.put_capture("m/acme/domain:*:CodeGen", back, 1.0, feedback_id="f0")
        await store.put_capture("m/acme/domain:*:CodeGen", back, 1.0, feedback_id="f0")
        await store.put_capture("m/other/*", back, 1.0, feedback_id="f0")
        await store.put_capture("m/acme/*", dataclasses.replace(back, request_id="r1"), 1.0, feedback_id="f1")
    first, again, others, new = rows()
    assert (first[1:], again) == ((long_ago, b"\xab"), ("m/acme/domain:*:CodeGen", long_ago, b"\xab"))
    assert all(abs(stored_at - time.time()) < 60 and user is None for _, stored_at, user in (others, new))


async def test_the_newest_of_several_keys_come_in_the_order_they_were_kept(open_store, make, folder, caplog):
    async with open_store() as store:
        for number in range(12):
            capture = make.capture(f"r{number}", seed=number)
            if number % 4 == 3:
                capture = dataclasses.replace(capture, fingerprint="another model")
            key = f"m/acme/{'ab'[number % 2] if number < 8 else 'b'}"
            await store.put_capture(key, capture, number / 12, feedback_id=f"f{number}")
        await store.put_capture("m/acme/a", make.capture("r4", seed=4), 1.0, feedback_id="f4")
        await store.put_capture("m/other/a", make.capture("r0", seed=4), 1.0, feedback_id="theirs")
        both, seen = ["m/acme/a", "m/acme/b"], []

        def wanted(head):
            seen.append(head)
            return head.fingerprint != "another model"

        found = await store.newest_captures(both, wanted, limit=5)
        assert [head.feedback_id for head, _, _ in found] == ["f6", "f8", "f9", "f10", "f4"]
        assert [capture.request_id for _, capture, _ in found] == ["r6", "r8", "r9", "r10", "r4"]
        assert [signal for *_, signal in found] == [6 / 12, 8 / 12, 9 / 12, 10 / 12, 1.0]
        assert [head.feedback_id for head in seen] == ["f4", "f11", "f10", "f9", "f8", "f7", "f6"]
        assert [head.seq for head in seen] == sorted((head.seq for head in seen), reverse=True)
        assert all(abs(head.stored_at - time.time()) < 60 for head in seen)
        assert {head.key for head in seen} == set(both)
        assert await store.newest_captures([], wanted, limit=5) == []
        (folder / _file_of(folder, "f10")).write_bytes(b"no")
        found = await store.newest_captures(both, wanted, limit=5)
        assert [head.feedback_id for head, _, _ in found] == ["f5", "f6", "f8", "f9", "f4"]
    assert "cannot be read" in caplog.text


def _file_of(folder, feedback_id):
    with contextlib.closing(sqlite3.connect(folder / "state.sqlite3")) as connection:
        return connection.execute("SELECT file FROM captures WHERE feedback_id = ?", (feedback_id,)).fetchone()[0]


async def test_a_damaged_capture_is_left_out(open_store, make, folder, caplog):
    async with open_store() as store:
        for number in range(3):
            await store.put_capture(
                make.key, make.capture(f"r{number}", seed=number), 1.0, feedback_id=f"f{number}"
            )
        next((folder / "captures").iterdir()).write_bytes(b"no")
        assert len(await store.captures(make.key, limit=10)) == 2
    assert "cannot be read" in caplog.text
