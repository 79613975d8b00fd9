"""`state backup | restore | verify`: plain functions that block, for the command line and for tests.

`backup` and `verify` may run while a server holds the folder; `restore` needs it for itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import StateError
from . import segment_copies
from .files import FOLDERS, STAGING, DamagedFile, StateFiles, sync_folder
from .folder import named_files
from .lock import LOCK_NAME, FolderLock
from .report import Report, rows_of
from .schema import BACKUPS, DATABASE, MIGRATIONS, connect, copy_database, format_of
from .segments import EPISODES

__all__ = ["backup", "restore", "verify"]

_log = logging.getLogger("sona_stream.store")

_MANIFEST = "manifest.json"
_SNAPSHOTS = 50
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z")


def verify(directory: Path) -> Report:
    """Check everything: pages, foreign keys, versions, every file's hash, files that no row names.

    Damage is reported, not raised; StateError when there is no state in `directory` at all.
    """
    directory = Path(directory)
    if not (directory / DATABASE).is_file():
        raise StateError(f"there is no state in {directory} ({DATABASE} is missing)")
    try:
        with contextlib.closing(connect(directory / DATABASE, read_only=True)) as connection:
            return _verify(connection, directory)
    except sqlite3.Error as error:
        problem = f"{DATABASE} cannot be read: {error}"
        return Report(path=directory, format=0, rows={}, files=0, problems=(problem,))


def backup(directory: Path, target: Path) -> Report:
    """A consistent copy of the state in `directory`, also while it is served: a folder, or a file ``*.tar``.

    Raises StateError when `target` exists or ends as a compressed file, or the copy cannot be written. Damaged
    files are left out and named in the report.
    """
    directory, target = Path(directory), Path(target)
    if target.exists():
        raise StateError(f"{target} exists already; name a new file or folder for the backup")
    if target.suffix.lower() in _COMPRESSED:
        raise StateError(f"{target}: backups are not compressed; name a folder, or a file that ends in .tar")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _staging(target.parent) as stage:
            problems = _copy_consistently(directory, stage)
            report = _described(verify(stage), target, problems)
            contents = {
                path.relative_to(stage).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(stage.rglob("*"))
                if path.is_file()
            }
            manifest = {"format": report.format, "sha256": contents}
            (stage / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            if target.suffix == ".tar":
                _pack(stage, target)
            else:
                stage.rename(target)
    except (OSError, sqlite3.Error) as error:
        raise StateError(f"the backup {target} could not be made: {error}") from error
    return report


def restore(source: Path, directory: Path, *, force: bool = False) -> Report:
    """Put a backup (folder, ``*.tar``, or a database copy from ``backups/``) in place of the state in `directory`.

    Raises StateError, with `directory` as it was, when it holds a state and `force` is off, when another process
    holds it, or when the backup is damaged or newer than this program. A crash on the way leaves the old state
    or the new one, whole: tensor files never change under a name, and the database is replaced by one rename.
    The old state, if it can still be read, is kept as ``backups/state-before-restore-<time>.tar``.
    """
    source, directory = Path(source), Path(directory)
    if not source.exists():
        raise StateError(f"there is no backup {source}")
    if not force and _is_used(directory):
        raise StateError(f"{directory} is not empty; restore with --force to replace the state in it")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FolderLock(directory)
        lock.acquire()
        try:
            with _staging(directory) as stage:
                _unpack(source, stage)
                _check_restorable(source, stage)
                _keep_old(directory)
                segment_copies.renumber(stage, directory)
                _replace(stage, directory)
            return verify(directory)
        finally:
            lock.release()
    except (OSError, sqlite3.Error, tarfile.TarError) as error:
        raise StateError(f"{source} could not be restored to {directory}: {error}") from error


def _verify(connection: sqlite3.Connection, directory: Path) -> Report:
    version, newest = format_of(connection), MIGRATIONS[-1].version
    problems = [f"database: {row[0]}" for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
    problems += [f"{row[0]} row {row[1]}: no {row[2]}" for row in connection.execute("PRAGMA foreign_key_check")]
    if version != newest:  # older: the next open migrates it; newer: its tables are not known here
        if version > newest:
            problems.append(f"format {version} is newer than this version of sona-stream reads ({newest})")
        return Report(path=directory, format=version, rows={}, files=0, problems=tuple(problems))
    dangling = connection.execute(
        "SELECT key, version FROM current_adapters c WHERE version != 0 AND NOT EXISTS "
        "(SELECT 1 FROM adapters a WHERE a.key = c.key AND a.version = c.version)"
    )
    problems += [f"adapter {key}: version {number} is served but not there" for key, number in dangling]
    named, files = named_files(connection), StateFiles(directory)
    found, unnamed = _damaged(files, named), files.present() - named.keys()
    now = named_files(connection)  # a server may have pruned or added some meanwhile
    problems += [problem for name, problem in found.items() if name in now]
    return Report(
        path=directory,
        format=version,
        rows=rows_of(connection),
        files=len(named),
        problems=(*problems, *segment_copies.problems(connection, directory)),
        orphans=tuple(sorted((unnamed - now.keys()) | segment_copies.orphans(connection, directory))),
    )


def _damaged(files: StateFiles, named: dict[str, bytes]) -> dict[str, str]:
    """Name -> what is wrong with it."""
    found = {}
    for name, digest in sorted(named.items()):
        try:
            files.read(name, digest)
        except DamagedFile as error:
            found[name] = str(error)
    return found


def _described(report: Report, path: Path, problems: list[str]) -> Report:
    """The report about a stage, as one about its final place; what was damaged at the source is named once."""
    own = [
        problem for problem in report.problems if problem.split(":")[0] not in {p.split(":")[0] for p in problems}
    ]
    return Report(path=path, format=report.format, rows=report.rows, files=report.files, problems=(*problems, *own))


@contextlib.contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    """A folder on the same file system as the goal, gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix=STAGING, dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _copy_consistently(directory: Path, stage: Path) -> list[str]:
    """Snapshot of the database, then the files it names.

    A file that was pruned in between, or an episode that was moved, calls for a new snapshot; what was copied
    stays good, since a name never changes its content, so each round has less to do. Returns what is damaged at
    the source.
    """
    if not (directory / DATABASE).is_file():
        raise StateError(f"there is no state in {directory} ({DATABASE} is missing)")
    files, copy = StateFiles(directory), stage / DATABASE
    with contextlib.closing(connect(directory / DATABASE, read_only=True)) as connection:
        for _ in range(_SNAPSHOTS):
            copy.unlink(missing_ok=True)
            copy_database(connection, copy)
            with contextlib.closing(connect(copy, read_only=True)) as snapshot:
                wanted = named_files(snapshot)
                lost, torn = _copy_files(files, wanted, stage), segment_copies.copy(snapshot, directory, stage)
            known = lost.keys() <= named_files(connection).keys()
            if known and torn.keys() <= segment_copies.named(connection):
                break
    StateFiles(stage).remove(StateFiles(stage).present() - wanted.keys())
    return [*lost.values(), *torn.values()]


def _copy_files(files: StateFiles, wanted: dict[str, bytes], stage: Path) -> dict[str, str]:
    """Name -> reason of those that could not be copied."""
    damaged = {}
    for name, digest in wanted.items():
        path = stage / name
        if path.exists():
            continue
        try:
            data = files.read(name, digest)
        except DamagedFile as error:
            damaged[name] = str(error)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return damaged


def _pack(stage: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with tarfile.open(temporary, "w") as tar:
            for path in sorted(stage.rglob("*")):
                if path.is_file():
                    tar.add(path, arcname=path.relative_to(stage).as_posix(), recursive=False)
        temporary.chmod(0o600)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _is_used(directory: Path) -> bool:
    return directory.exists() and any(path.name != LOCK_NAME for path in directory.iterdir())


def _unpack(source: Path, stage: Path) -> None:
    if source.is_dir():
        for path in source.rglob("*"):
            if path.is_file() and _belongs(path.relative_to(source).as_posix()):
                goal = stage / path.relative_to(source)
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, goal)
    elif source.suffix == ".sqlite3":
        shutil.copyfile(source, stage / DATABASE)
    else:
        try:
            _extract(source, stage)
        except (StateError, OSError, tarfile.FilterError):
            raise
        except Exception as error:  # each compression has its own for a stream that is cut or changed
            raise StateError(
                f"{source} is not a backup of sona-stream, or it is damaged (cut off, perhaps); nothing changed"
            ) from error


def _extract(source: Path, stage: Path) -> None:
    with tarfile.open(source) as tar:
        for member in tar:
            if not (member.isfile() and _belongs(member.name)):
                raise StateError(f"{source} is not a backup of sona-stream (it holds {member.name!r})")
            tar.extract(member, stage, filter="data")


def _belongs(name: str) -> bool:
    return name in (DATABASE, _MANIFEST) or (
        name.split("/")[0] in (*FOLDERS, EPISODES) and ".." not in name.split("/")
    )


def _check_restorable(source: Path, stage: Path) -> None:
    """Raises StateError unless the stage is what `backup` wrote, and of a format that this version reads."""
    if not (stage / DATABASE).is_file():
        raise StateError(f"{source} is not a backup of sona-stream ({DATABASE} is missing)")
    if source.suffix != ".sqlite3":
        _check_manifest(source, stage)
    with contextlib.closing(connect(stage / DATABASE, read_only=True)) as connection:
        version, newest = format_of(connection), MIGRATIONS[-1].version
        if not 1 <= version <= newest:
            raise StateError(
                f"{source} has format {version}, this version of sona-stream reads up to {newest}; "
                "upgrade with: pip install --upgrade sona-stream"
            )
        damage = [row[0] for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
    if damage:
        raise StateError(f"{source} is damaged and was not restored: {'; '.join(damage[:3])}")


def _check_manifest(source: Path, stage: Path) -> None:
    path = stage / _MANIFEST
    if not path.is_file():
        raise StateError(f"{source} is not a backup of sona-stream ({_MANIFEST} is missing)")
    try:
        contents = json.loads(path.read_bytes())["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{source} is damaged and was not restored: {_MANIFEST} cannot be read") from error
    for name, digest in contents.items():
        file = stage / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise StateError(f"{source} is damaged and was not restored: {name} is missing or changed")


def _keep_old(directory: Path) -> None:
    """Best effort on purpose: a restore is what one does when the old state is beyond reading."""
    if not (directory / DATABASE).is_file():
        return
    stamp = f"{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 10**9:09d}"
    target = directory / BACKUPS / f"state-before-restore-{stamp}.tar"
    try:
        backup(directory, target)
    except StateError as error:
        _log.warning("no copy of the old state was kept: %s", error)


def _replace(stage: Path, directory: Path) -> None:
    for name in sorted(StateFiles(stage).present() | segment_copies.files(stage)):
        goal = directory / name
        goal.parent.mkdir(parents=True, exist_ok=True)
        os.replace(stage / name, goal)
        sync_folder(goal.parent)
    _fold_log(directory / DATABASE)
    with open(stage / DATABASE, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(stage / DATABASE, directory / DATABASE)
    sync_folder(directory)


def _fold_log(database: Path) -> None:
    """The old database's log must not meet the new database."""
    if database.is_file():
        with contextlib.suppress(sqlite3.Error, StateError), contextlib.closing(connect(database)):
            pass  # the last connection to close folds the log in and deletes it
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
