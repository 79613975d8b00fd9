"""The database's format: tables of version 1, forward migrations, and what happens with other versions."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import StateError
from .access import database_uri

__all__ = [
    "BACKUPS",
    "BUSY_TIMEOUT_MS",
    "DATABASE",
    "EPISODES_SINCE",
    "MIGRATIONS",
    "Migration",
    "connect",
    "copy_database",
    "format_of",
    "migrate",
    "statements",
]

DATABASE = "state.sqlite3"
BACKUPS = "backups"
BUSY_TIMEOUT_MS = 10_000
EPISODES_SINCE = 2
"""Format that brought the memory of episodes."""
_APPLICATION_ID = 0x534F4E41  # "SONA"
_OLDEST_SQLITE = (3, 37, 0)  # STRICT tables

_VERSION_1 = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE trajectories (
    row INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    request_id TEXT NOT NULL,
    started_at REAL NOT NULL,
    stored_at REAL NOT NULL,
    facts TEXT NOT NULL,
    user BLOB,
    ids TEXT,
    embedding BLOB,
    prompt_ids BLOB,
    token_ids BLOB,
    UNIQUE (tenant, request_id)
) STRICT;
CREATE INDEX trajectories_by_start ON trajectories (started_at);
CREATE INDEX trajectories_by_age ON trajectories (stored_at);
CREATE INDEX trajectories_by_request ON trajectories (request_id);

CREATE TABLE trajectory_texts (
    row INTEGER PRIMARY KEY REFERENCES trajectories (row) ON DELETE CASCADE,
    query BLOB,
    body BLOB,
    answer BLOB,
    stop TEXT
) STRICT;

CREATE TABLE request_names (
    tenant TEXT NOT NULL,
    name BLOB NOT NULL,
    row INTEGER NOT NULL REFERENCES trajectories (row) ON DELETE CASCADE,
    PRIMARY KEY (tenant, name, row)
) STRICT, WITHOUT ROWID;
CREATE INDEX request_names_by_row ON request_names (row);

CREATE TABLE feedback (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    request_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    user BLOB,
    kind TEXT NOT NULL,
    quality REAL,
    metric_name TEXT,
    value REAL,
    correction BLOB,
    idempotency_key BLOB,
    idempotency_digest BLOB,
    content_digest BLOB NOT NULL,
    created_at REAL NOT NULL,
    stored_at REAL NOT NULL,
    status TEXT,
    reason TEXT,
    adapter_key TEXT,
    adapter_version INTEGER
) STRICT;
CREATE UNIQUE INDEX feedback_once ON feedback (tenant, idempotency_digest) WHERE idempotency_digest IS NOT NULL;
CREATE INDEX feedback_pending ON feedback (seq) WHERE status IS NULL;
CREATE INDEX feedback_by_age ON feedback (stored_at);
CREATE INDEX feedback_with_text ON feedback (seq) WHERE correction IS NOT NULL;

CREATE TABLE adapters (
    key TEXT NOT NULL,
    version INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    parent INTEGER,
    fingerprint TEXT NOT NULL,
    scaling TEXT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT NOT NULL,
    metrics TEXT NOT NULL,
    feedback_ids TEXT NOT NULL,
    created_at REAL NOT NULL,
    file TEXT NOT NULL,
    sha256 BLOB NOT NULL,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (key, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE current_adapters (
    key TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    reason TEXT NOT NULL,
    changed_at REAL NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE captures (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL,
    tenant TEXT NOT NULL,
    user BLOB,
    request_id TEXT NOT NULL,
    feedback_id TEXT NOT NULL,
    advantage REAL NOT NULL,
    facts TEXT NOT NULL,
    stored_at REAL NOT NULL,
    file TEXT NOT NULL,
    sha256 BLOB NOT NULL,
    bytes INTEGER NOT NULL,
    UNIQUE (key, request_id, feedback_id)
) STRICT;
CREATE INDEX captures_by_age ON captures (stored_at);
CREATE INDEX captures_by_file ON captures (file);

CREATE TABLE blobs (
    name TEXT PRIMARY KEY,
    data BLOB NOT NULL,
    sha256 BLOB NOT NULL,
    changed_at REAL NOT NULL
) STRICT;
"""

_VERSION_2 = """
CREATE TABLE episodes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    rank INTEGER NOT NULL,
    model TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    scope TEXT NOT NULL,
    tenant TEXT NOT NULL,
    user BLOB,
    key_id TEXT NOT NULL,
    request_id TEXT NOT NULL,
    feedback_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    answer_tokens INTEGER NOT NULL,
    created_at REAL NOT NULL,
    stored_at REAL NOT NULL,
    promoted_by TEXT,
    promoted_at REAL,
    superseded_by INTEGER REFERENCES episodes (number) ON DELETE CASCADE,
    uses INTEGER NOT NULL,
    standing REAL NOT NULL,
    static BLOB NOT NULL,
    segment INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    stamp INTEGER NOT NULL
) STRICT;
CREATE INDEX episodes_by_age ON episodes (stored_at);
CREATE INDEX episodes_by_rank ON episodes (rank);
CREATE INDEX episodes_by_tenant ON episodes (tenant);
CREATE INDEX episodes_by_successor ON episodes (superseded_by) WHERE superseded_by IS NOT NULL;
CREATE INDEX episodes_by_segment ON episodes (segment);

CREATE TABLE episode_texts (
    number INTEGER PRIMARY KEY REFERENCES episodes (number) ON DELETE CASCADE,
    question BLOB NOT NULL,
    system BLOB NOT NULL,
    answer BLOB,
    body BLOB
) STRICT;

CREATE TABLE hidden_spaces (
    fingerprint TEXT NOT NULL,
    version TEXT NOT NULL,
    mean BLOB NOT NULL,
    spread BLOB NOT NULL,
    PRIMARY KEY (fingerprint, version)
) STRICT, WITHOUT ROWID;
"""

_VERSION_3 = """
CREATE TABLE questions (
    tenant TEXT NOT NULL,
    request_id TEXT NOT NULL,
    user BLOB,
    stored_at REAL NOT NULL,
    sketch BLOB NOT NULL,
    PRIMARY KEY (tenant, request_id)
) STRICT;
CREATE INDEX questions_by_age ON questions (stored_at);
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Migration:
    """One step forward: ``apply`` brings a database of format ``version - 1`` to ``version``.

    It runs inside the transaction of all steps, so it uses plain `execute` (`executescript` would commit).
    """

    version: int
    title: str
    apply: Callable[[sqlite3.Connection], None]


def statements(script: str) -> Callable[[sqlite3.Connection], None]:
    """An ``apply`` that executes the statements of `script` one by one."""

    def apply(connection: sqlite3.Connection) -> None:
        for statement in filter(str.strip, script.split(";")):
            connection.execute(statement)

    return apply


MIGRATIONS: tuple[Migration, ...] = (
    Migration(1, "tables of the first version", statements(_VERSION_1)),
    Migration(2, "the memory of episodes", statements(_VERSION_2)),
    Migration(3, "what requests asked, without its text", statements(_VERSION_3)),
    Migration(4, "episodes by request", statements("CREATE INDEX episodes_by_request ON episodes (request_id)")),
)


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode with this store's pragmas. It may move between threads, one at a time.

    WAL (https://www.sqlite.org/wal.html) with ``synchronous=FULL``: a commit has been fsynced when it returns.
    ``secure_delete``: what is deleted is overwritten with zeros.
    """
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise StateError(f"SQLite {sqlite3.sqlite_version} is too old: 3.37 or newer is needed")
    uri = database_uri(path, read_only=read_only)
    connection = sqlite3.connect(
        uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_MS / 1000
    )
    try:
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute("PRAGMA foreign_keys=ON")
        if read_only:
            connection.execute("PRAGMA query_only=ON")
        else:
            format_of(connection)  # before anything is changed in a file that may not be ours
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA secure_delete=ON")
    except BaseException:
        connection.close()
        raise
    return connection


def copy_database(source: sqlite3.Connection, target: Path) -> None:
    """A consistent copy while others read and write, as one file without a write-ahead log.

    Source: the online backup API, https://www.sqlite.org/backup.html.
    """
    with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")


def format_of(connection: sqlite3.Connection) -> int:
    """The format version; 0 for a new, empty database. Raises StateError when the file is not ours."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    owner = int(connection.execute("PRAGMA application_id").fetchone()[0])
    tables = int(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])
    if owner != _APPLICATION_ID and (version or tables):
        raise StateError(f"{DATABASE} was not written by sona-stream; name another folder in sona.state_dir")
    return version


def migrate(
    connection: sqlite3.Connection, directory: Path, migrations: Sequence[Migration] = MIGRATIONS
) -> tuple[int, int]:
    """Bring the database to the newest format of `migrations`; returns (format before, format now).

    All steps run in one transaction, after a copy into ``backups/``. Raises StateError, with the database as it
    was, when a step fails or when the database is newer than this program.
    """
    found = format_of(connection)
    newest = migrations[-1].version
    if found > newest:
        raise StateError(_too_new(directory, found, newest))
    if found == newest:
        return found, newest
    backup = _back_up(connection, directory, found) if found else None
    connection.execute("BEGIN EXCLUSIVE")
    try:
        for migration in migrations:
            if migration.version > found:
                migration.apply(connection)
        connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={newest}")
        connection.execute("COMMIT")
    except Exception as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        kept = f" (a copy is {backup})" if backup else ""
        raise StateError(
            f"the state in {directory} could not be brought from format {found} to {newest}: {error}; "
            f"it was left as it was{kept}"
        ) from error
    return found, newest


def _back_up(connection: sqlite3.Connection, directory: Path, version: int) -> Path:
    folder = directory / BACKUPS
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"state-v{version}-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 10**9:09d}.sqlite3"
    copy_database(connection, target)
    target.chmod(0o600)
    return target


def _too_new(directory: Path, found: int, newest: int) -> str:
    message = (
        f"the state in {directory} has format {found}, this version of sona-stream reads up to {newest}; "
        "upgrade with: pip install --upgrade sona-stream"
    )
    readable = [
        path
        for version in range(1, newest + 1)
        for path in sorted((directory / BACKUPS).glob(f"state-v{version}-*.sqlite3"))
    ]
    if readable:
        message += f" -- or go back with: sona-stream state restore --force {readable[-1]}"
    return message
