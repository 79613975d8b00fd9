"""TLS contexts for upstreams."""

from __future__ import annotations

import os
import ssl

__all__ = ["create_ssl_context"]


def create_ssl_context(verify: bool | str = True) -> ssl.SSLContext:
    """True: the machine's certificate authorities (certifi's when it has none); a path: that CA bundle or
    folder instead; False: anybody's certificate, no check at all. Raises ValueError when the bundle is unreadable.
    """
    if isinstance(verify, str):
        context = _from_bundle(verify)
    else:
        context = ssl.create_default_context(cafile=_fallback_bundle())
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def _from_bundle(path: str) -> ssl.SSLContext:
    folder = os.path.isdir(path)
    try:
        return ssl.create_default_context(cafile=None if folder else path, capath=path if folder else None)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"ssl_verify: the CA bundle {path!r} cannot be read: {error}") from error


def _fallback_bundle() -> str | None:
    paths = ssl.get_default_verify_paths()
    if paths.cafile or paths.capath:
        return None
    try:
        import certifi
    except ImportError:
        return None
    return certifi.where()
