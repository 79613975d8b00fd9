"""Which headers pass, and the ones that say what was done: `x-sona-*`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from ..events import Head, Headers
from ..wire import HOP_BY_HOP

__all__ = ["answer_headers", "for_upstream", "forwarded", "header_value"]

# An upstream's word about its own connection, host or clock is not ours to repeat.
_NOT_FORWARDED = HOP_BY_HOP | {
    b"alt-svc",
    b"content-length",
    b"date",
    b"server",
    b"set-cookie",
    b"strict-transport-security",
}
_OF_THE_BODY = frozenset({b"content-type", b"content-encoding", b"content-md5", b"digest", b"etag"})
_NOT_FOR_UPSTREAM = HOP_BY_HOP | {b"content-length", b"cookie", b"expect", b"host", b"origin"}
_NOT_FOR_KEYED_UPSTREAM = _NOT_FOR_UPSTREAM | {b"authorization", b"api-key", b"x-api-key"}


def forwarded(headers: Iterable[tuple[bytes, bytes]], *, verbatim: bool) -> Headers:
    """The upstream's headers that the client gets; those about the body only when its bytes are ``verbatim``."""
    return tuple(
        (name, value)
        for name, value in headers
        if name not in _NOT_FORWARDED and not name.startswith(b"x-sona-") and (verbatim or name not in _OF_THE_BODY)
    )


def for_upstream(headers: Iterable[tuple[bytes, bytes]], *, keyed: bool) -> Headers:
    """The client's headers that a backend may see: nothing about this connection, and no credentials when they
    are for this server (``keyed``).
    """
    dropped = _NOT_FOR_KEYED_UPSTREAM if keyed else _NOT_FOR_UPSTREAM
    return tuple(
        (name, value) for name, value in headers if name not in dropped and not name.startswith(b"x-sona-")
    )


@lru_cache(4096)  # models, patterns and reasons are few, answers many
def header_value(text: str) -> bytes:
    """``text`` as a header's value: what is not printable ASCII is percent-encoded (RFC 3986)."""
    if text.isascii() and text.isprintable():
        return text.encode("ascii")
    return b"".join(b"%c" % byte if 0x20 <= byte < 0x7F else b"%%%02X" % byte for byte in text.encode())


def answer_headers(request_id: str, head: Head | None) -> list[tuple[bytes, bytes]]:
    """What every answer says of itself; of an error only its id is known."""
    own = [(b"x-sona-request-id", request_id.encode())]
    if head is None:
        return own
    route = head.route
    own.append((b"x-sona-model", header_value(head.model)))
    own.append((b"x-sona-adapter", header_value(str(head.adapter)) if head.adapter else b"none"))
    if head.episodes:
        own.append((b"x-sona-episodes", ", ".join(ref.key for ref in head.episodes).encode()))
    if head.bare_reason:
        own.append((b"x-sona-adapter-reason", header_value(head.bare_reason)))
    if route is not None:
        own.append((b"x-sona-pattern", header_value(route.pattern) if route.pattern else b"none"))
        own.append((b"x-sona-pattern-type", route.pattern_type.encode()))
        own.append((b"x-sona-reason", header_value(route.reason)))
        own.append((b"x-sona-propensity", b"%.6g" % route.propensity))
        if route.similarity is not None:
            own.append((b"x-sona-similarity", b"%.4f" % route.similarity))
    return own
