"""What a client may say about adaptation and learning of its own request: `x-sona-adapt`, `x-sona-learn`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

from ..errors import InvalidRequest, NotFound
from ..events import AdapterRef, Principal, pupil

__all__ = ["parse_adapt", "parse_learn"]

_PIN = re.compile(r"(?P<model>.+)/(?P<tenant>[^/@]+)/(?P<group>[^/@]+)@(?P<version>[1-9][0-9]{0,8})")


def parse_adapt(headers: Mapping[bytes, bytes], model: str, principal: Principal) -> tuple[bool, AdapterRef | None]:
    """(adapt at all, the version that is pinned). Raises `InvalidRequest`; `NotFound` for somebody else's key."""
    value = headers.get(b"x-sona-adapt", b"on").decode("latin-1").strip()
    if value.lower() in ("on", ""):
        return True, None
    if value.lower() == "off":
        return False, None
    match = _PIN.fullmatch(value)
    if match is None:
        raise InvalidRequest(
            f"x-sona-adapt must be off, on, or an adapter as model/tenant/group@version, not {value[:80]!r}",
            param="x-sona-adapt",
        )
    key = value.rpartition("@")[0]
    if unquote(match["tenant"]) not in (principal.tenant, pupil(principal.tenant, principal.user)):
        raise NotFound(f"there is no adapter {value}")
    if match["model"] != model:
        raise InvalidRequest(
            f"x-sona-adapt pins an adapter of {match['model']!r}: ask for that model, not {model!r}",
            param="x-sona-adapt",
        )
    return True, AdapterRef(key=key, version=int(match["version"]), pinned=True)


def parse_learn(headers: Mapping[bytes, bytes]) -> bool:
    """Whether this request may be learned from."""
    value = headers.get(b"x-sona-learn", b"on").decode("latin-1").strip().lower()
    if value not in ("on", "off", ""):
        raise InvalidRequest(f"x-sona-learn must be on or off, not {value[:80]!r}", param="x-sona-learn")
    return value != "off"
