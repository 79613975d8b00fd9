"""What a deployment says of its connection: TLS, proxy, HTTP/2. Looked at when the backend is made, not when the
first request fails by it.
"""

from __future__ import annotations

import importlib.util
import ssl
import urllib.parse

from sona_stream.config.settings import Deployment
from sona_stream.errors import ConfigError
from sona_stream.transport import create_ssl_context

__all__ = ["check_connection", "ssl_context"]

_PROXIES = ("http", "https", "socks5", "socks5h")


def check_connection(deployment: Deployment) -> None:
    """Raises ConfigError that names the field."""
    if deployment.http2:
        _need(deployment, "http2", "h2", "httpx[http2]")
    if isinstance(deployment.ssl_verify, str):
        _trust(deployment)
    if deployment.client_cert:
        _show(deployment, deployment.client_cert, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    if deployment.proxy:
        _check_proxy(deployment, deployment.proxy)


def ssl_context(deployment: Deployment, *, secure: bool) -> ssl.SSLContext:
    """For httpx. ``secure``: whether it will be used; reading the machine's certificates takes longer than all the
    rest. Raises ConfigError.
    """
    context = _trust(deployment) if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if deployment.client_cert:
        _show(deployment, deployment.client_cert, context)
    return context


def _trust(deployment: Deployment) -> ssl.SSLContext:
    try:
        return create_ssl_context(deployment.ssl_verify)
    except ValueError as error:
        raise ConfigError(f"model {deployment.model_name!r}: {error}") from error


def _show(deployment: Deployment, cert: str | tuple[str, str], context: ssl.SSLContext) -> None:
    chain, key = (cert, None) if isinstance(cert, str) else cert
    try:
        # An empty password: a key that needs one is an error, not a question at the terminal.
        context.load_cert_chain(chain, key, password="")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"model {deployment.model_name!r}: client_cert cannot be read: {error}") from error


def _check_proxy(deployment: Deployment, proxy: str) -> None:
    """The message does not repeat the address: there may be a password in it."""
    try:
        parts = urllib.parse.urlsplit(proxy)
        usable = parts.scheme in _PROXIES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(
            f"model {deployment.model_name!r}: proxy must be an address like http://host:3128 "
            f"(schemes: {', '.join(_PROXIES)})"
        )
    if parts.scheme.startswith("socks"):
        _need(deployment, "proxy: a socks address", "socksio", "httpx[socks]")


def _need(deployment: Deployment, what: str, package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"model {deployment.model_name!r}: {what} needs the package {package}; try: pip install '{extra}'"
        )
