"""Headers that speak of one connection only and are never passed on (RFC 9110, section 7.6.1)."""

from __future__ import annotations

__all__ = ["HOP_BY_HOP"]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
