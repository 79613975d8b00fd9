"""Forgetting an end user or a tenant, in an open store or for the command line; what a lowered level forgets."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from sqlite3 import Connection

from ..config.settings import Storage
from ..errors import StateError
from . import retention
from .pending import Entry, Pending
from .retention import Removed
from .schema import DATABASE, MIGRATIONS
from .session import Session

__all__ = ["erase", "forget", "lower"]

_log = logging.getLogger("sona_stream.store")


def forget(directory: Path, *, tenant: str, user: str | None = None) -> dict[str, int]:
    """`SqliteStore.forget` on a folder that no server holds; blocks. -> rows removed by kind.

    What `sona.storage` and its time limits would remove besides is left to the server. Raises StateError when there
    is no state in ``directory``, or another process holds it.
    """
    directory = Path(directory)
    if not (directory / DATABASE).is_file():
        raise StateError(f"there is no state in {directory} ({DATABASE} is missing)")
    return asyncio.run(_forget(directory, tenant, user))


async def _forget(directory: Path, tenant: str, user: str | None) -> dict[str, int]:
    session = await Session.open(directory, MIGRATIONS, Pending(capacity=1, max_bytes=1), _no_entries)
    try:
        return (await erase(session, tenant=tenant, user=user, directory=directory)).rows
    finally:
        await session.close()


def _no_entries(connection: Connection, entries: list[Entry]) -> None:
    """Nobody submits trajectories here."""


async def erase(session: Session, *, tenant: str, user: str | None, directory: Path) -> Removed:
    """The rows with their files, and the automatic copies that still hold them."""
    removed = await session.remove(lambda c: retention.forget(c, tenant, user))
    removed.rows["backups"] = await asyncio.to_thread(retention.remove_backups, directory)
    return removed


async def lower(session: Session, storage: Storage, *, directory: Path) -> None:
    """What an earlier, wider `sona.storage` kept, and the automatic copies that still hold it."""

    def run(connection: Connection) -> Removed:
        removed = retention.enforce(connection, storage)
        if removed.any or storage == "none":  # before this is durable: what stops on the way is begun again
            removed.rows["automatic copies"] = retention.remove_backups(directory)
        return removed

    removed = await session.remove(run)
    if removed.any:
        _log.warning("sona.storage is %r: removed what was kept before: %s", storage, removed.rows)
