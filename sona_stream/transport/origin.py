"""Where a URL points: an origin to connect to, and a target to ask for."""

from __future__ import annotations

import dataclasses
import re
import urllib.parse

__all__ = ["Origin", "parse_url"]

_BAD_TARGET = re.compile(r"[^\x21-\x7e]")


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port; connections are pooled by it."""

    tls: bool
    host: str
    port: int

    @property
    def authority(self) -> bytes:
        """The `host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = self.port == (443 if self.tls else 80)
        return (host if default else f"{host}:{self.port}").encode("ascii")

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority.decode()}"


def parse_url(url: str) -> tuple[Origin, bytes]:
    """(origin, request target). Raises ValueError naming what is wrong with the URL."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode("ascii")
    except ValueError as error:
        raise ValueError(f"{url!r} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"{url!r} must begin with http:// or https:// and name a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL must not hold a user name or password; use the authorization header")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if _BAD_TARGET.search(url):
        raise ValueError(f"{url!r} holds a space, a control character or one that is not ASCII; percent-encode it")
    tls = parts.scheme == "https"
    return Origin(tls, host, port or (443 if tls else 80)), target.encode("ascii")
