"""Which headers travel: from the client to the upstream by a list of what may, back by a list of what may not."""

from __future__ import annotations

from collections.abc import Iterable

from sona_stream.config.settings import Deployment, SonaSettings
from sona_stream.errors import ConfigError
from sona_stream.events import Headers
from sona_stream.wire import HOP_BY_HOP

__all__ = ["HeaderRules", "answer_headers", "content_type"]

# What speaks of the upstream's own host or connection, or is set anew by the server in front.
_NOT_FOR_CLIENTS = HOP_BY_HOP | {
    b"alt-svc",
    b"content-length",
    b"date",
    b"server",
    b"set-cookie",
    b"strict-transport-security",
}
# A proxy in front of other people's servers hands on what is known to be meant for them, and nothing else:
# cookies and internal tokens of the client's network stay here.
_FORWARDED = frozenset(
    {
        b"accept",
        b"idempotency-key",
        b"traceparent",
        b"tracestate",
        b"user-agent",
        b"x-conversation-id",
        b"x-request-id",
        b"x-session-id",
    }
)
_FORWARDED_PREFIXES = (b"openai-", b"x-stainless-")
_CREDENTIALS = frozenset({b"authorization", b"api-key", b"x-api-key"})
_ACCOUNT = frozenset({b"openai-organization", b"openai-project"})


class HeaderRules:
    """Of one deployment. Credentials: the deployment's key when it has one; else the client's own, but only when
    this proxy has no keys itself, for then what the client sent cannot be one of them. What the deployment's key is
    billed to is not the client's to say, and tenants that share one account must not meet in an idempotency key.

    ``params.extra_headers`` (a mapping) are always sent; ``params.forward_headers`` (a list of names) are passed
    on from the client too.
    """

    def __init__(self, deployment: Deployment, settings: SonaSettings) -> None:
        fixed: dict[bytes, bytes] = {
            b"content-type": b"application/json",
            b"accept-encoding": b"identity",  # bytes stay verbatim and readable
        }
        allowed = set(_FORWARDED)
        if deployment.api_key:
            fixed[b"authorization"] = _encoded(deployment, "api_key", f"Bearer {deployment.api_key}")
        elif not settings.keys:
            allowed |= _CREDENTIALS
        if organization := deployment.params.get("organization"):
            fixed[b"openai-organization"] = _encoded(deployment, "organization", organization)
        for name, value in _mapping(deployment, "extra_headers").items():
            fixed[_name(deployment, "extra_headers", name)] = _encoded(deployment, "extra_headers", value)
        if settings.keys:
            allowed.discard(b"idempotency-key")
        for name in _names(deployment, "forward_headers"):
            if settings.keys and name.lower().encode() in _CREDENTIALS:
                raise ConfigError(
                    f"model {deployment.model_name!r}: forward_headers must not name {name!r} while sona.keys is "
                    "set: clients send this proxy's own keys in it"
                )
            allowed.add(_name(deployment, "forward_headers", name))
        self.fixed: Headers = tuple(fixed.items())
        self._withheld = frozenset(fixed) | (_ACCOUNT if deployment.api_key else frozenset())
        self._allowed = frozenset(allowed) - fixed.keys()

    def upstream(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        """What goes up, of what the client sent."""
        allowed, withheld = self._allowed, self._withheld
        kept = [
            pair
            for pair in headers
            if pair[0] in allowed or (pair[0].startswith(_FORWARDED_PREFIXES) and pair[0] not in withheld)
        ]
        return (*self.fixed, *kept) if kept else self.fixed


def answer_headers(headers: Headers) -> Headers:
    """What goes down, of what the upstream sent: rate limits, request ids and vendors' own fields among it."""
    dropped = _NOT_FOR_CLIENTS
    for name, value in headers:
        if name == b"connection":
            dropped = dropped | {one.strip().lower() for one in value.split(b",")}
    return tuple(pair for pair in headers if pair[0] not in dropped and not pair[0].startswith(b"x-sona-"))


def content_type(headers: Headers) -> tuple[bytes, bool]:
    """(media type in lower case without parameters, whether the body is compressed)."""
    kind, encoded = b"", False
    for name, value in headers:
        if name == b"content-type":
            kind = value.partition(b";")[0].strip().lower()
        elif name == b"content-encoding":
            encoded = value.strip().lower() not in (b"", b"identity")
    return kind, encoded


def _mapping(deployment: Deployment, field: str) -> dict[str, str]:
    value = deployment.params.get(field) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"model {deployment.model_name!r}: {field} must be a mapping of header names to values")
    return value


def _names(deployment: Deployment, field: str) -> list[str]:
    value = deployment.params.get(field) or []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"model {deployment.model_name!r}: {field} must be a list of header names")
    return value


def _name(deployment: Deployment, field: str, name: str) -> bytes:
    raw = str(name).lower().encode("ascii", "replace")
    if raw in HOP_BY_HOP or raw in (b"host", b"content-length", b"expect"):
        raise ConfigError(f"model {deployment.model_name!r}: {field} must not name {name!r}")
    return raw


def _encoded(deployment: Deployment, field: str, value: object) -> bytes:
    try:
        raw = str(value).encode("latin-1")
    except UnicodeEncodeError:
        raw = b"\n"
    if b"\n" in raw or b"\r" in raw or b"\0" in raw:
        raise ConfigError(
            f"model {deployment.model_name!r}: {field} holds a line break, NUL or non-Latin character"
        )
    return raw
