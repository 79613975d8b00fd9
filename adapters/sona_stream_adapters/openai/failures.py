"""What an upstream's refusal means for the request."""

from __future__ import annotations

from sona_stream.errors import UpstreamError
from sona_stream.events import Headers

__all__ = ["early_error", "refusal"]

_RETRYABLE = frozenset({408, 409, 425, 429})
_JSON = (b"content-type", b"application/json")


def refusal(name: str, status: int, headers: Headers, body: bytes, *, own_key: bool) -> UpstreamError:
    """For an answer that is no success. ``own_key``: the credentials are the deployment's, so a 401 or 403 is
    not the client's fault and another deployment may do better; a 401 is not even told, for the client would take
    it for a word about its own key.

    The message quotes nothing of the body: it ends up in logs, and bodies may quote the prompt.
    """
    if status < 400:
        return UpstreamError(f"{name}: the upstream answered {status}, which is not followed", retryable=True)
    if own_key and status == 401:
        return UpstreamError(f"{name}: the upstream refuses the deployment's api_key (401)", retryable=True)
    retryable = status in _RETRYABLE or status >= 500 or (own_key and status in (401, 403))
    return UpstreamError(
        f"{name}: the upstream answered {status}",
        status=status,
        headers=headers,
        body=body,
        retryable=retryable,
    )


def early_error(name: str, status: int | None, headers: Headers, body: bytes) -> UpstreamError:
    """For an error that came inside a 200 before any content, as an event or as the body."""
    told = status or 502
    return UpstreamError(
        f"{name}: the upstream sent an error before any content",
        status=told,
        headers=(*(pair for pair in headers if pair[0] != b"content-type"), _JSON),
        body=body,
        retryable=told in _RETRYABLE or told >= 500,
    )
