"""For vLLM without a proxy in front: which tenant's adapter a request gets, by the API key that it bears.

    SONA_VLLM_TENANTS=tenants.json vllm serve MODEL --middleware sona_stream_adapters.vllm_plugin.middleware.Tenants

The file maps keys, as ``sha256:<hex>``, to tenants; it is read again when it changes:

    {"adapter": "{model}/{tenant}/*", "keys": {"sha256:...": "alice", "sha256:...": ["alice", "bob"]}}

A key with one tenant is bound to it; one with several names the tenant as ``model@tenant``. A key that is not there
gets the bare model, where vLLM's own ``--api-key`` lets it in.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .guard import replaying, stripped, with_body
from .messages import (
    CONTROL_HEADER,
    App,
    Receive,
    Scope,
    Send,
    Unanswered,
    failure,
    header,
    holds_key,
    read_body,
    reply,
)
from .settings import SettingsError, is_enabled, read_settings

__all__ = ["TenantFile", "Tenants"]

_log = logging.getLogger(__name__)

VARIABLE = "SONA_VLLM_TENANTS"
_LOOK_EVERY_S = 1.0
_SAFE = "*:._-+ "  # as in the proxy's adapter keys


class TenantFile:
    """Key -> tenants. A change that cannot be read is logged, and what was known before stays."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looked = float("-inf")
        self._stamp: tuple[int, int] | None = None
        self._tenants: dict[str, tuple[str, ...]] = {}
        self._adapter = "{model}/{tenant}/*"
        try:
            self._read()
        except (OSError, ValueError) as error:
            raise SettingsError(f"{VARIABLE}={str(path)!r}: {error}") from error

    def tenants(self, key: bytes) -> tuple[str, ...] | None:
        """Those that this API key may be; None for a key that is not there. Looked up by hash."""
        now = time.monotonic()
        if now - self._looked > _LOOK_EVERY_S:
            self._looked = now
            self._look()
        return self._tenants.get("sha256:" + hashlib.sha256(key).hexdigest())

    def adapter(self, model: str, tenant: str) -> str:
        """The key under which this tenant's adapter lies."""
        return self._adapter.replace("{model}", model).replace("{tenant}", quote(tenant, safe=_SAFE))

    def _look(self) -> None:
        try:
            self._read()
        except (OSError, ValueError) as error:
            _log.error("sona: %s cannot be read, the tenants known before stay: %s", self._path, error)

    def _read(self) -> None:
        told = self._path.stat()
        stamp = (told.st_mtime_ns, told.st_size)
        if stamp == self._stamp:
            return
        data = json.loads(self._path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or not isinstance(data.get("keys"), dict):
            raise ValueError('expected {"keys": {"sha256:...": "tenant"}}')  # noqa: TRY004 - told with the path
        adapter = data.get("adapter", self._adapter)
        if not isinstance(adapter, str) or "{tenant}" not in adapter:
            raise ValueError("adapter must be a text with {tenant} in it")
        self._tenants = {_hashed(key): _names(key, value) for key, value in data["keys"].items()}
        self._adapter, self._stamp = adapter, stamp


def _hashed(key: str) -> str:
    kind, _, digest = key.partition(":")
    if kind != "sha256" or len(digest) != 64 or not set(digest.lower()) <= set("0123456789abcdef"):
        raise ValueError("each key must be sha256:<64 hexadecimal digits> (sona-stream keys hash prints it)")
    return f"sha256:{digest.lower()}"


def _names(key: str, value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(one, str) and one for one in names):
        raise ValueError(f"{key[:20]}...: expected a tenant's name or a list of them")
    return tuple(names)


class Tenants:
    """ASGI middleware. Overwrites the arguments that bind an adapter; clients' own are taken out."""

    def __init__(self, app: App, environ: Mapping[str, str] | None = None) -> None:
        self._app = app
        self._file: TenantFile | None = None
        environ = os.environ if environ is None else environ
        if is_enabled(environ):
            path = environ.get(VARIABLE, "")
            if not path:
                raise SettingsError(f"{VARIABLE}: the path of the file that maps API keys to tenants is needed")
            self._file = TenantFile(Path(path))
            self._key = (read_settings(environ).key or "").encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            self._file is None
            or scope["type"] != "http"
            or scope.get("method") != "POST"
            or self._is_trusted(scope)
        ):
            await self._app(scope, receive, send)
            return
        try:
            tenants = self._file.tenants(_bearer(scope))
            if tenants is not None and _is_json(scope):
                body = await read_body(receive, None)
                bound = self._bound(body, tenants, self._file)
                if bound is not None:
                    scope, body = with_body(scope, bound), bound
                    others = [pair for pair in scope["headers"] if pair[0].lower() != CONTROL_HEADER]
                    scope["headers"] = [*others, (CONTROL_HEADER, self._key)]
                receive = replaying(body, receive)
        except Unanswered as refusal:
            await reply(send, failure(refusal))
            return
        except ConnectionError:
            return
        await self._app(scope, receive, send)

    def _is_trusted(self, scope: Scope) -> bool:
        return bool(header(scope, CONTROL_HEADER)) and holds_key(scope, self._key, bearer=False)

    def _bound(self, body: bytes, tenants: tuple[str, ...], file: TenantFile) -> bytes | None:
        """The body with its tenant's adapter; None when it is no request to a model."""
        try:
            value = json.loads(stripped(body)[0])
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or not isinstance(value.get("model"), str):
            return None
        model, tenant = _model_and_tenant(value["model"], tenants)
        if tenant is None:
            return None
        given = value.get("vllm_xargs")
        xargs = {**(given if isinstance(given, dict) else {}), "sona": file.adapter(model, tenant)}
        return json.dumps({**value, "model": model, "vllm_xargs": xargs}).encode()


def _model_and_tenant(named: str, tenants: tuple[str, ...]) -> tuple[str, str | None]:
    model, at, tenant = named.rpartition("@")
    if at and tenant in tenants:
        return model, tenant
    if len(tenants) == 1:
        return named, tenants[0]
    if at:
        raise Unanswered(403, f"this key may not ask as {tenant[:100]!r}", kind="permission_denied", param="model")
    return named, None


def _bearer(scope: Scope) -> bytes:
    scheme, _, token = header(scope, b"authorization").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else header(scope, b"x-api-key")


def _is_json(scope: Scope) -> bool:
    return not header(scope, b"content-type").lower().startswith(b"multipart/")
