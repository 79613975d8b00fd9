"""How the database's file is opened, by what its folder allows."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["database_uri"]


def database_uri(path: Path, *, read_only: bool) -> str:
    """For `sqlite3.connect`. A file that is to be written is made first, for its owner alone.

    Readers of a write-ahead log need an index beside it. Where they cannot make one (a read-only mount, a snapshot)
    and no log is left, nobody writes, and the file is read as it is: https://www.sqlite.org/wal.html#readonly.
    """
    uri = path.absolute().as_uri()
    if not read_only:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # the log beside it inherits the mode
        return f"{uri}?mode=rwc"
    still = not path.with_name(f"{path.name}-wal").exists() and not os.access(path.parent, os.W_OK)
    return f"{uri}?mode=ro{'&immutable=1' if still else ''}"
