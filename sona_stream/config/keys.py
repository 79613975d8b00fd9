"""API keys as they stand in the configuration: hashes, never the keys themselves."""

from __future__ import annotations

import hashlib
import re

from ..errors import ConfigError
from .settings import KeySettings

__all__ = ["check_keys", "hash_key", "key_name"]

_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def hash_key(key: str) -> str:
    """``sha256:<hex>`` of a key. Keys are long and random, so a plain hash cannot be searched."""
    return f"sha256:{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()}"


def key_name(key: KeySettings) -> str:
    """What a key is called in logs and records: its ``name``, else the first eight digits of its hash."""
    return key.name or key.key.removeprefix("sha256:")[:8]


def check_keys(keys: tuple[KeySettings, ...]) -> None:
    """Raises `ConfigError` without ever repeating what may be a plain key."""
    seen: dict[str, int] = {}
    called: dict[tuple[str, str], int] = {}
    for index, key in enumerate(keys):
        where = f"sona.keys[{index}]"
        if not _HASH.fullmatch(key.key):
            raise ConfigError(
                f"{where}.key is not a hash: write sha256:<64 hex digits>, never the key itself; "
                "`sona-stream keys hash` prints it"
            )
        if key.key in seen:
            raise ConfigError(f"{where}.key is the same as sona.keys[{seen[key.key]}].key")
        if not _TENANT.fullmatch(key.tenant):
            raise ConfigError(
                f"{where}.tenant {key.tenant!r} must be 1 to 64 letters, digits, '.', '_' or '-', "
                "and begin with a letter or digit"
            )
        if not key.roles:
            raise ConfigError(f"{where}.roles is empty: give at least one of use, teach, admin")
        seen[key.key] = index
        first = called.setdefault((key.tenant, key_name(key)), index)
        if first != index:
            raise ConfigError(
                f"{where} is called the same as sona.keys[{first}], both of the tenant {key.tenant!r}: each "
                "key is one person to what is learned and remembered, so give it a `name` of its own"
            )
