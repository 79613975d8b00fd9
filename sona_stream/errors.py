"""Every error the program raises on purpose, as one tree.

Rooms raise these; the server maps them to HTTP once, at the seam (`sona_stream.server.responses`).
Errors about a caller's value are also `ValueError`s, so that plain Python users need not know this tree.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "AuthenticationError",
    "CaptureGone",
    "ConfigError",
    "FeedbackConflict",
    "HostAway",
    "HostError",
    "InvalidRequest",
    "ModelUnavailable",
    "NotAdapted",
    "NotFound",
    "NotPermitted",
    "NotReady",
    "PluginError",
    "RequestTooLarge",
    "SonaError",
    "StateError",
    "UpstreamError",
    "UpstreamProtocolError",
    "UpstreamTimeout",
    "UpstreamUnreachable",
]


class SonaError(Exception):
    """Root of the tree. ``status`` is the HTTP status it maps to, ``code`` its stable machine name."""

    status = 500
    code = "internal_error"


class ConfigError(SonaError, ValueError):
    """A setting is wrong. The message names the entry, the value and the limit."""

    code = "config_error"


class PluginError(SonaError):
    """An entry point is missing or cannot be loaded; the message says what to install."""

    code = "plugin_error"


class InvalidRequest(SonaError, ValueError):
    """The client's request is wrong; ``param`` names the field."""

    status = 400
    code = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class RequestTooLarge(InvalidRequest):
    """The body is larger than `sona.max_body_mb`."""

    status = 413
    code = "request_too_large"


class AuthenticationError(SonaError):
    """No key, or an unknown one."""

    status = 401
    code = "invalid_api_key"


class NotPermitted(SonaError):
    """The key is known, but its roles or tenant do not allow this."""

    status = 403
    code = "permission_denied"


class NotFound(SonaError, LookupError):
    """What the client named does not exist (model, request, adapter version, path)."""

    status = 404
    code = "not_found"


class FeedbackConflict(SonaError):
    """An id is ambiguous, an idempotency key was used for other content, the answer is still being given, or
    feedback can't be taken back.
    """

    status = 409
    code = "conflict"


class CaptureGone(SonaError):
    """What the feedback is about can no longer be reconstructed; names the setting that would keep it."""

    status = 410
    code = "capture_gone"


class NotAdapted(CaptureGone):
    """The adapter that an answer's head names did not serve all of it: nothing can be said about that adapter."""


class NotReady(SonaError):
    """The model does not answer yet."""

    status = 503
    code = "not_ready"


class ModelUnavailable(SonaError):
    """A model's files cannot be had or loaded; the message says what to do next."""

    status = 503
    code = "model_unavailable"


class HostError(SonaError):
    """A `HiddenStateHost` refused or failed (fingerprint mismatch, shapes, unknown key)."""

    code = "host_error"


class HostAway(NotReady):
    """A `HiddenStateHost` does not answer now: what it was to learn waits until it is back."""

    code = "host_away"


class StateError(SonaError):
    """Learned state on disk is damaged, newer than this version, or held by another process."""

    code = "state_error"


class UpstreamError(SonaError):
    """An upstream answered with an error before its first byte of content.

    ``headers`` and ``body`` are the upstream's own, to be forwarded when no fallback is left.
    """

    status = 502
    code = "upstream_error"

    def __init__(
        self,
        message: str,
        *,
        status: int = 502,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = tuple(headers)
        self.body = body
        self.retryable = retryable


class UpstreamUnreachable(UpstreamError):
    """Connecting failed, or the connection died before the first byte."""

    code = "upstream_unreachable"


class UpstreamTimeout(UpstreamError):
    """A connect, first-byte or idle limit passed; the message names which."""

    code = "upstream_timeout"


class UpstreamProtocolError(UpstreamError):
    """The upstream died in the middle of its answer or sent what is not HTTP or not the protocol."""

    code = "upstream_protocol_error"
