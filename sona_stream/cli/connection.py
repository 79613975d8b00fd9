"""A small blocking client for a running server: what the commands need, on the standard library."""

from __future__ import annotations

import http.client
import json
import os
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

import click

from ..wire.sse import SseDecoder

__all__ = ["Answer", "Connection", "ServerError", "server_options"]

DEFAULT_BASE_URL = "http://127.0.0.1:8080"


class ServerError(click.ClickException):
    """The server answered with an error; the message is its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the server answered {status}: {message}")
        self.status = status


class Answer:
    """A streamed chat completion: iterate over its text, then read ``headers``. Leaving its block hangs up."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.finish_reason: str | None = None

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *exc: object) -> None:
        self._response.close()

    def __iter__(self) -> Iterator[str]:
        for data in self._events():
            if data == b"[DONE]":
                return
            event = json.loads(data)
            if "error" in event:
                raise click.ClickException(_message(data))
            for choice in event.get("choices", ()):
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
                if text := choice.get("delta", {}).get("content"):
                    yield text
        raise click.ClickException("the answer broke off: the server closed the connection")

    def _events(self) -> Iterator[bytes]:
        decoder = SseDecoder()
        try:
            while chunk := self._response.read1(65536):
                yield from decoder.feed(chunk)
        except (OSError, http.client.HTTPException) as error:
            raise click.ClickException(f"the answer broke off: {error or type(error).__name__}") from error


class Connection:
    """Requests to one server. Each call opens its own connection: commands are short."""

    def __init__(self, base_url: str, api_key: str | None, timeout: float = 600.0) -> None:
        parts = urllib.parse.urlsplit(base_url if "://" in base_url else f"http://{base_url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise click.BadParameter(f"{base_url!r} is not an http(s) URL", param_hint="--base-url")
        self.base_url = f"{parts.scheme}://{parts.netloc}"
        self._parts, self._timeout = parts, timeout
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}

    def _open(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=self._timeout)
        data = None if body is None else json.dumps(body).encode()
        kind_of_body = {"content-type": "application/json"} if data else {}
        sent = {"connection": "close", **self._headers, **headers, **kind_of_body}
        try:
            connection.request(method, path, body=data, headers=sent)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise click.ClickException(
                f"no server answers at {self.base_url} ({error}); start one with: sona-stream serve"
            ) from error

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The decoded JSON answer; raises `ServerError` for a status of 400 and above."""
        with self._open(method, path, body, {}) as response:
            data = response.read()
            if response.status >= 400:
                raise ServerError(response.status, _message(data))
            return json.loads(data) if data else None

    def fetch(self, path: str) -> tuple[bytes, Mapping[str, str]]:
        """Body and headers (names in lower case); raises `ServerError` as `call` does."""
        with self._open("GET", path, None, {}) as response:
            data = response.read()
            if response.status >= 400:
                raise ServerError(response.status, _message(data))
            return data, {name.lower(): value for name, value in response.getheaders()}

    def is_alive(self) -> bool:
        """Whether anything answers there."""
        try:
            self.call("GET", "/health/liveness")
        except click.ClickException:
            return False
        return True

    def stream_chat(self, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Answer:
        """Start a streamed chat completion."""
        response = self._open("POST", "/v1/chat/completions", {**body, "stream": True}, headers or {})
        if response.status >= 400:
            with response:
                raise ServerError(response.status, _message(response.read()))
        return Answer(response)


def _message(data: bytes) -> str:
    try:
        error = json.loads(data)["error"]
        return str(error["message"]) if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        return data[:500].decode("utf-8", "replace")


def server_options(command: Any) -> Any:
    """The options of every command that talks to a running server."""
    command = click.option(
        "--api-key",
        default=lambda: os.environ.get("SONA_API_KEY"),
        help="Key of the server; default: the environment's SONA_API_KEY.",
    )(command)
    return click.option("--base-url", default=DEFAULT_BASE_URL, show_default=True, help="The server's address.")(
        command
    )
