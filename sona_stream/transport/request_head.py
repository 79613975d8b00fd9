"""Encodes the head of an HTTP/1.1 request; refuses what would smuggle a second header or request."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["encode_head"]

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_OURS = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect", b"te"})
_SEEN_NAMES_LIMIT = 1024
_good_names: set[bytes] = set()


def encode_head(
    method: str, target: bytes, authority: bytes, headers: Iterable[tuple[bytes, bytes]], length: int | None
) -> bytes:
    """Head of a request whose body has ``length`` bytes (None: no body header at all).

    Framing is this module's: passing `host`, `content-length`, `transfer-encoding`, `connection`, `upgrade`,
    `te` or `expect` raises ValueError, like a name that is no token or a value with a line break or NUL.
    """
    verb = method.encode("ascii")
    if not _TOKEN.fullmatch(verb):
        raise ValueError(f"{method!r} is not an HTTP method")
    parts = [verb, b" ", target, b" HTTP/1.1\r\nhost: ", authority]
    count = 1
    for name, value in headers:
        if name not in _good_names:
            _check_name(name)
        parts += (b"\r\n", name, b": ", value)
        count += 1
    if length is not None:
        parts.append(b"\r\ncontent-length: %d" % length)
        count += 1
    head = b"".join(parts)
    # One look at the whole instead of one at each value: only our own line ends may be there.
    if head.count(b"\n") != count or head.count(b"\r") != count or b"\0" in head:
        bad = next(name for name, value in headers if re.search(rb"[\r\n\0]", value))
        raise ValueError(f"the value of header {bad!r} holds a line break or NUL")
    return head + b"\r\n\r\n"


def _check_name(name: bytes) -> None:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is not a header name")
    if name.lower() in _OURS:
        raise ValueError(f"the header {name.decode()!r} is set by the transport and cannot be passed")
    if len(_good_names) < _SEEN_NAMES_LIMIT:
        _good_names.add(name)
