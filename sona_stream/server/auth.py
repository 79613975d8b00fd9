"""Who asks: keys to principals, and what a principal may do."""

from __future__ import annotations

import dataclasses
import ipaddress
import logging
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from ..config.keys import hash_key, key_name
from ..config.settings import SonaSettings
from ..errors import AuthenticationError, NotPermitted
from ..events import Principal, Role

__all__ = ["Authenticator", "asserted_user"]

_OPEN = Principal()
_log = logging.getLogger(__name__)


class Authenticator:
    """Without configured keys everybody is the tenant ``default`` with all roles (then only loopback is bound)."""

    def __init__(self, settings: SonaSettings) -> None:
        self._principals = {
            key.key: Principal(
                tenant=key.tenant,
                key_id=key_name(key),
                roles=frozenset(key.roles),
                trusted_gateway=key.trusted_gateway,
            )
            for key in settings.keys
        }

    def principal(self, headers: Mapping[bytes, bytes], role: Role) -> Principal:
        """Raises AuthenticationError (401) or NotPermitted (403)."""
        found = self._find(headers)
        if role not in found.roles:
            raise NotPermitted(f"this key has not the role `{role}` that is needed here")
        return found

    def _find(self, headers: Mapping[bytes, bytes]) -> Principal:
        if not self._principals:
            _refuse_foreign_pages(headers)
            return _OPEN
        key = _presented(headers)
        if not key:
            raise AuthenticationError("an API key is needed: send `Authorization: Bearer KEY` or `x-api-key: KEY`")
        # The lookup is by hash, so its timing says nothing about the key.
        found = self._principals.get(hash_key(key.decode("utf-8", "surrogateescape")))
        if found is None:
            raise AuthenticationError("the API key is not known here")
        return found


def _presented(headers: Mapping[bytes, bytes]) -> bytes:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and token.strip():
        return token.strip()
    return headers.get(b"x-api-key", b"").strip()


def _refuse_foreign_pages(headers: Mapping[bytes, bytes]) -> None:
    """Where no key is needed, a web page of another host must not use the visitor's browser to get in, neither
    across origins nor by making its own name mean this machine (DNS rebinding).
    """
    origin = headers.get(b"origin")
    if (origin is None or _is_loopback(_hostname(origin))) and _is_private(headers.get(b"host", b"")):
        return
    raise NotPermitted("pages and names of other hosts may not use this server without an API key; set `sona.keys`")


def _hostname(url: bytes) -> str:
    """Empty when there is none."""
    try:
        return urlsplit(url.decode("latin-1")).hostname or ""
    except ValueError:
        return ""


@lru_cache(256)
def _is_private(host: bytes) -> bool:
    """Whether no stranger's name server can answer for this `host` header: an address, a bare or a private name."""
    name = _hostname(b"//" + host).rstrip(".")
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith((".localhost", ".local", ".internal"))
    return True


def _is_loopback(host: str) -> bool:
    """Without asking the resolver: this is on the path of a request."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def asserted_user(
    principal: Principal, headers: Mapping[bytes, bytes], header: str, body_user: str | None
) -> Principal:
    """The principal with the end user that a trusted gateway names (header first); others cannot name one."""
    if not principal.trusted_gateway:
        return principal
    named = headers.get(header.lower().encode("latin-1", "ignore"), b"").decode("utf-8", "replace").strip()
    user = named or body_user
    if not user:
        _say_nameless(principal.key_id, header)
        return principal
    return dataclasses.replace(principal, user=user)


@lru_cache(maxsize=1024)
def _say_nameless(key_id: str, header: str) -> None:
    """Once a key: a gateway that drops names lets its users share their lessons, which nothing else would show."""
    _log.warning(
        "the trusted gateway %s sent a request that names no end user, in neither header %r nor the body's user: "
        "such requests share the tenant's lessons",
        key_id,
        header,
    )
