"""Format versions, migrations, foreign and damaged files, the lock."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap

import pytest

from sona_stream.errors import StateError
from sona_stream.store import maintenance
from sona_stream.store.feedback import commit
from sona_stream.store.lock import FolderLock
from sona_stream.store.schema import BACKUPS, DATABASE, MIGRATIONS, Migration, connect, migrate, statements

NEWEST = MIGRATIONS[-1].version
SECOND = Migration(
    NEWEST + 1,
    "a note beside every feedback",
    statements("ALTER TABLE feedback ADD COLUMN note TEXT; UPDATE feedback SET note = 'old ' || id"),
)
THIRD = Migration(NEWEST + 2, "an index", statements("CREATE INDEX feedback_by_note ON feedback (note)"))


def fails(connection):
    connection.execute("UPDATE feedback SET key_id = 'half done'")
    connection.execute("CREATE TABLE feedback (again INTEGER)")


def query(folder, statement):
    connection = sqlite3.connect(folder / DATABASE)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


async def one_feedback(open_store, make, **options):
    async with open_store(**options) as store:
        await store.commit_feedback(make.feedback())


async def test_a_new_folder_has_the_newest_format_and_no_backup(open_store, make, folder):
    await one_feedback(open_store, make)
    assert query(folder, "PRAGMA user_version") == [(NEWEST,)]
    assert query(folder, "PRAGMA journal_mode") == [("wal",)]
    assert not (folder / BACKUPS).exists()
    assert (folder / DATABASE).stat().st_mode & 0o777 == 0o600


async def test_migrations_run_in_order_after_a_backup(open_store, make, folder):
    await one_feedback(open_store, make)
    async with open_store(migrations=(*MIGRATIONS, SECOND, THIRD)) as store:
        assert (await store.feedback())[0] == make.feedback()
    assert query(folder, "PRAGMA user_version") == [(NEWEST + 2,)]
    assert query(folder, "SELECT note FROM feedback") == [("old f1",)]
    (backup,) = (folder / BACKUPS).iterdir()
    assert backup.name.startswith(f"state-v{NEWEST}-")
    assert backup.stat().st_mode & 0o777 == 0o600
    async with open_store(migrations=(*MIGRATIONS, SECOND, THIRD)):
        pass
    assert len(list((folder / BACKUPS).iterdir())) == 1


async def test_state_of_the_first_format_is_brought_forward(open_store, make, folder):
    folder.mkdir()
    connection = connect(folder / DATABASE)
    assert migrate(connection, folder, MIGRATIONS[:1]) == (0, 1)
    commit(connection, make.feedback(), make.feedback(), bytes(32))
    connection.close()
    async with open_store() as store:
        assert await store.feedback() == [make.feedback()]
        assert await store.episode_store.entries() == []
    assert query(folder, "PRAGMA user_version") == [(NEWEST,)]
    (backup,) = (folder / BACKUPS).iterdir()
    assert backup.name.startswith("state-v1-")
    assert maintenance.verify(folder).ok
    maintenance.restore(backup, folder, force=True)
    assert query(folder, "PRAGMA user_version") == [(1,)]
    async with open_store() as store:
        assert await store.feedback() == [make.feedback()]


async def test_a_failing_migration_leaves_everything_as_it_was(open_store, make, folder):
    await one_feedback(open_store, make)
    broken = Migration(NEWEST + 2, "broken", fails)
    with pytest.raises(StateError, match=rf"format {NEWEST} to {NEWEST + 2}: .*left as it was.*state-v{NEWEST}-"):
        async with open_store(migrations=(*MIGRATIONS, SECOND, broken)):
            pass
    assert query(folder, "PRAGMA user_version") == [(NEWEST,)]
    assert query(folder, "SELECT key_id FROM feedback") == [("k1",)]
    async with open_store() as store:
        assert await store.feedback() == [make.feedback()]


async def test_a_newer_format_is_refused_with_the_command(open_store, make, folder):
    await one_feedback(open_store, make)
    async with open_store(migrations=(*MIGRATIONS, SECOND)):
        pass
    before = (folder / DATABASE).read_bytes()
    with pytest.raises(StateError, match=r"pip install --upgrade sona-stream") as caught:
        async with open_store():
            pass
    (backup,) = (folder / BACKUPS).iterdir()
    assert f"sona-stream state restore --force {backup}" in str(caught.value)
    assert (folder / DATABASE).read_bytes() == before
    report = maintenance.verify(folder)
    assert report.format == NEWEST + 1
    assert "newer" in report.problems[0]
    maintenance.restore(backup, folder, force=True)
    async with open_store() as store:
        assert await store.feedback() == [make.feedback()]


async def test_a_database_of_somebody_else_is_left_alone(open_store, folder):
    folder.mkdir()
    other = sqlite3.connect(folder / DATABASE)
    other.execute("CREATE TABLE theirs (x)")
    other.commit()
    other.close()
    before = (folder / DATABASE).read_bytes()
    with pytest.raises(StateError, match="was not written by sona-stream"):
        async with open_store():
            pass
    assert (folder / DATABASE).read_bytes() == before


async def test_a_damaged_database_is_refused_with_the_command(open_store, make, folder):
    await one_feedback(open_store, make)
    (folder / DATABASE).write_bytes(b"this is no database at all, " * 300)
    with pytest.raises(StateError, match="state restore"):
        async with open_store():
            pass
    assert not maintenance.verify(folder).ok
    FolderLock(folder).acquire()


async def test_one_store_a_folder(open_store, folder):
    async with open_store():
        with pytest.raises(StateError, match=rf"{folder}.*process {os.getpid()}"):
            async with open_store():
                pass
    async with open_store():
        pass


def hold(folder):
    script = """
        import sys
        from pathlib import Path
        from sona_stream.store.lock import FolderLock
        FolderLock(Path(sys.argv[1])).acquire()
        print("held", flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


async def test_another_process_holds_the_folder(open_store, folder):
    folder.mkdir()
    holder = hold(folder)
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StateError, match=f"process {holder.pid}"):
            async with open_store():
                pass
        holder.kill()
    async with open_store():
        pass


async def test_a_folder_that_cannot_be_made(tmp_path, open_store, folder):
    folder.write_text("a file")
    with pytest.raises(StateError, match=r"sona\.state_dir"):
        async with open_store():
            pass
