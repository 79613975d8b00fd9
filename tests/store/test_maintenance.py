"""backup, restore, verify."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import sqlite3
import tarfile

import pytest

from sona_stream.config.settings import SonaSettings
from sona_stream.errors import StateError
from sona_stream.store import create_store, maintenance, peek
from sona_stream.store.folder import named_files
from sona_stream.store.schema import DATABASE, connect


async def fill(store, make, count=3):
    for number in range(1, count + 1):
        await store.put_adapter(make.record(number))
        await store.put_capture(make.key, make.capture(f"r{number}", seed=number), 1.0, feedback_id=f"f{number}")
        await store.commit_feedback(make.feedback(f"f{number}"))
    await store.set_current(make.key, count, reason="step")


async def contents(folder):
    async with create_store(SonaSettings(), directory=folder) as store:
        return (
            [one.id for one in await store.feedback()],
            [(one.key, one.version) for one in await store.adapters()],
            await store.current_versions(),
            [id for _, _, id in await store.captures("org/model/acme/CodeGen", limit=99)],
        )


@pytest.mark.parametrize("name", ["copy", "copy.tar"])
async def test_backup_and_restore(open_store, make, folder, tmp_path, name):
    async with open_store() as store:
        await fill(store, make)
        made = await asyncio.to_thread(maintenance.backup, folder, tmp_path / name)
        assert made.ok
        assert made.files == 6
        assert made.rows["feedback"] == 3
        await store.commit_feedback(make.feedback("later"))
    with pytest.raises(StateError, match="exists already"):
        maintenance.backup(folder, tmp_path / name)
    for packed in ("new.tar.gz", "new.tgz", "new.ZIP"):
        with pytest.raises(StateError, match=f"{packed}: .*ends in .tar$"):
            maintenance.backup(folder, tmp_path / packed)
        assert not (tmp_path / packed).exists()
    fresh = tmp_path / "fresh"
    report = maintenance.restore(tmp_path / name, fresh)
    assert report.ok
    assert report.path == fresh
    expected = (["f1", "f2", "f3"], [(make.key, n) for n in (1, 2, 3)], {make.key: 3}, ["f1", "f2", "f3"])
    assert await contents(fresh) == expected
    before = await contents(folder)
    with pytest.raises(StateError, match="not empty"):
        maintenance.restore(tmp_path / name, folder)
    assert await contents(folder) == before
    assert maintenance.restore(tmp_path / name, folder, force=True).ok
    assert await contents(folder) == expected
    (kept,) = (folder / "backups").iterdir()
    maintenance.restore(kept, tmp_path / "old")
    assert await contents(tmp_path / "old") == before
    assert not list(tmp_path.glob(".*"))
    assert not list(folder.glob(".*"))


async def test_a_backup_while_everything_changes_is_consistent(open_store, make, folder, tmp_path):
    async with open_store() as store:
        await fill(store, make)
        stop = asyncio.Event()

        async def churn():
            version = 3
            while not stop.is_set():
                version += 1
                await store.put_adapter(make.record(version))
                await store.set_current(make.key, version, reason="step")
                await store.prune_adapters(make.key, keep=1)
                await store.commit_feedback(make.feedback(f"f{version}"))

        churning = asyncio.ensure_future(churn())
        for number in range(3):
            report = await asyncio.to_thread(maintenance.backup, folder, tmp_path / f"b{number}")
            assert report.ok, report.problems
            assert maintenance.restore(tmp_path / f"b{number}", tmp_path / f"s{number}").ok
        stop.set()
        await churning


async def test_restore_needs_the_folder_for_itself(open_store, make, folder, tmp_path):
    async with open_store() as store:
        await fill(store, make)
        await asyncio.to_thread(maintenance.backup, folder, tmp_path / "b")
        with pytest.raises(StateError, match="in use by process"):
            maintenance.restore(tmp_path / "b", folder, force=True)


@pytest.mark.parametrize("harm", ["file", "database", "manifest", "missing"])
async def test_a_damaged_backup_is_refused(open_store, make, folder, tmp_path, harm):
    async with open_store() as store:
        await fill(store, make)
    backup = tmp_path / "b"
    maintenance.backup(folder, backup)
    target = {
        "file": next((backup / "captures").iterdir()),
        "database": backup / DATABASE,
        "manifest": backup / "manifest.json",
        "missing": next((backup / "adapters").rglob("v2.*")),
    }[harm]
    if harm == "missing":
        target.unlink()
    else:
        target.write_bytes(target.read_bytes()[:-40])
    before = await contents(folder)
    with pytest.raises(StateError, match="not restored"):
        maintenance.restore(backup, folder, force=True)
    assert await contents(folder) == before


async def test_what_is_no_backup_is_refused(open_store, folder, tmp_path):
    for name, member in (("evil.tar", "../evil"), ("other.tar", "notes.txt"), ("evil2.tar", "adapters/../../evil")):
        with tarfile.open(tmp_path / name, "w") as tar:
            info = tarfile.TarInfo(member)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"evil"))
        with pytest.raises(StateError, match="not a backup"):
            maintenance.restore(tmp_path / name, folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StateError, match="not a backup"):
        maintenance.restore(tmp_path / "empty", folder)
    (tmp_path / "no.tar").write_bytes(b"no tar")
    with pytest.raises(StateError, match="or it is damaged"):
        maintenance.restore(tmp_path / "no.tar", folder)
    with pytest.raises(StateError, match="no backup"):
        maintenance.restore(tmp_path / "absent", folder)
    assert not (tmp_path / "evil").exists()


async def test_verify_finds_each_kind_of_damage(open_store, make, folder):
    with pytest.raises(StateError, match="no state"):
        maintenance.verify(folder)
    async with open_store() as store:
        await fill(store, make)
        assert maintenance.verify(folder).ok
    (folder / "captures" / "stray.bin").write_bytes(b"x")
    next((folder / "adapters").rglob("v1.*")).write_bytes(b"x")
    next((folder / "adapters").rglob("v2.*")).unlink()
    connection = sqlite3.connect(folder / DATABASE)
    connection.execute("DELETE FROM adapters WHERE version = 3")
    connection.execute("INSERT INTO request_names VALUES ('t', x'00', 99)")
    connection.commit()
    connection.close()
    report = maintenance.verify(folder)
    text = "\n".join(report.problems)
    assert len(report.problems) == 4, text
    assert "sha256" in text
    assert "No such file" in text
    assert "version 3 is served but not there" in text
    assert "request_names" in text
    assert str(report).endswith("4 problems")
    assert all(problem in str(report) for problem in report.problems)
    assert {name.split("/")[-1].split(".")[0] for name in report.orphans} == {"stray", "v3"}


async def test_a_closed_state_is_read_where_nothing_can_be_written(open_store, make, folder, tmp_path, monkeypatch):
    async with open_store() as store:
        await fill(store, make)
    database = folder / DATABASE
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    folder.chmod(0o500)
    try:
        with contextlib.closing(connect(database, read_only=True)) as connection:
            assert len(named_files(connection)) == 6
            assert not list(folder.glob("*-shm")), "a log's index cannot be made on a read-only mount"
        assert maintenance.verify(folder).ok
        assert maintenance.backup(folder, tmp_path / "b").ok
        assert peek.read_versions(folder) == {make.key: (3, [1, 2, 3])}
    finally:
        folder.chmod(0o700)


async def test_a_log_is_read_by_those_who_cannot_write_too(open_store, make, folder, monkeypatch):
    async with open_store() as store:
        await fill(store, make)
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        assert peek.read_versions(folder) == {make.key: (3, [1, 2, 3])}


async def test_damaged_pages_are_found(open_store, make, folder):
    async with open_store() as store:
        await store.put_blob("big", bytes(200_000))
        await fill(store, make)
    data = bytearray((folder / DATABASE).read_bytes())
    for page in range(3, len(data) // 4096, 2):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    (folder / DATABASE).write_bytes(data)
    assert not maintenance.verify(folder).ok


async def test_a_backup_of_a_damaged_state_names_what_it_left_out(open_store, make, folder, tmp_path):
    async with open_store() as store:
        await fill(store, make)
    next((folder / "adapters").rglob("v2.*")).unlink()
    report = maintenance.backup(folder, tmp_path / "b")
    assert len(report.problems) == 1
    assert "v2." in report.problems[0]
    maintenance.restore(tmp_path / "b", tmp_path / "fresh")
    assert (await contents(tmp_path / "fresh"))[1] == [(make.key, 1), (make.key, 3)]
    assert set(json.loads((tmp_path / "b" / "manifest.json").read_text())) == {"format", "sha256"}
    with pytest.raises(StateError, match="no state"):
        maintenance.backup(tmp_path / "nowhere", tmp_path / "c")


async def test_a_state_beyond_reading_is_replaced(open_store, make, folder, tmp_path, caplog):
    async with open_store() as store:
        await fill(store, make)
    maintenance.backup(folder, tmp_path / "b.tar")
    expected = await contents(folder)
    (folder / DATABASE).write_bytes(b"scrambled " * 2000)
    assert maintenance.restore(tmp_path / "b.tar", folder, force=True).ok
    assert "no copy of the old state was kept" in caplog.text
    assert await contents(folder) == expected
