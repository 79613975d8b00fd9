"""The list of `/v1/models`."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

__all__ = ["encode_model", "encode_models"]


class _Model(msgspec.Struct):
    id: str
    object: str
    created: int
    owned_by: str


class _Models(msgspec.Struct):
    object: str
    data: list[_Model]


def encode_model(name: str, *, created: int, owned_by: str = "sona-stream") -> bytes:
    """One entry, as `/v1/models/{name}` gives it. ``created`` in seconds since the epoch."""
    return msgspec.json.encode(_Model(name, "model", created, owned_by))


def encode_models(names: Iterable[str], *, created: int, owned_by: str = "sona-stream") -> bytes:
    """All entries, in the given order."""
    return msgspec.json.encode(_Models("list", [_Model(name, "model", created, owned_by) for name in names]))
