"""Whether the system's clock may be believed about how old things are: what expires does not come back."""

from __future__ import annotations

import logging
import sqlite3
import struct

__all__ = ["believed"]

_log = logging.getLogger("sona_stream.store")

_NAME = "clock"
_SEEN = struct.Struct("<dd")
"""When this state was looked at last, and where the clock leapt to since; 0.0: nowhere"""
_HOUR_S = 3600.0
_WHILE_S = 3000.0
"""The next hourly look comes after this, also where the clock is being slewed."""


def believed(connection: sqlite3.Connection, now: float, limit_s: float) -> bool:
    """Whether what is older than `limit_s` seconds at ``now`` (time.time()) may go.

    Not where the clock is further ahead of the last look than that: a start with a wrong clock would empty the
    state. It is believed once it has gone on from there for most of an hour, so after a year in a cupboard things
    go an hour late.
    """
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (_NAME,)).fetchone()
    seen, leapt = (now, 0.0) if row is None else _SEEN.unpack(row[0])
    ahead = now - seen > max(limit_s, _HOUR_S)
    if ahead and leapt and leapt <= now < leapt + _WHILE_S:
        return False
    if ahead and not (leapt and now >= leapt):
        _log.warning(
            "the clock is %.0f days ahead of the last time that this state was looked at: if it is right, what is "
            "too old (sona.storage_options) goes in an hour",
            (now - seen) / 86400,
        )
        _keep(connection, seen, now)
        return False
    _keep(connection, now, 0.0)
    return True


def _keep(connection: sqlite3.Connection, seen: float, leapt: float) -> None:
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_NAME, _SEEN.pack(seen, leapt)))
