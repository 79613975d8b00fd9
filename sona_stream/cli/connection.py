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

__all__ = ["Answer", "Connection", "ServerError", "address", "server_options"]

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
            event = _decoded(data)
            if event is None:
                raise click.ClickException(f"the answer is not one of sona-stream: {_start(data)}")
            if event.get("error"):
                raise click.ClickException(_message(data))
            for choice in event.get("choices") or ():
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
                if text := (choice.get("delta") or {}).get("content"):
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
        parts = address(base_url)
        self.base_url = f"{parts.scheme}://{parts.netloc}"
        self._parts, self._timeout = parts, timeout
        key = _key(api_key or "")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

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
        """The decoded JSON answer; raises `ServerError` for a status of 400 and above, another `ClickException`
        where no such server answers.
        """
        with self._open(method, path, body, {}) as response:
            found = _decoded(data := self._body(response))
        if found is None:
            raise click.ClickException(
                f"what answers at {self.base_url} is not sona-stream: it says {_start(data)} to {method} {path}; "
                "name the right address with --base-url, or start a server with: sona-stream serve"
            )
        return found

    def fetch(self, path: str) -> tuple[bytes, Mapping[str, str]]:
        """Body and headers (names in lower case); raises `ServerError` as `call` does."""
        with self._open("GET", path, None, {}) as response:
            return self._body(response), {name.lower(): value for name, value in response.getheaders()}

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
                self._body(response)
        return Answer(response)

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        try:
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            why = error or type(error).__name__
            raise click.ClickException(
                f"the server at {self.base_url} went away in the middle of its answer ({why})"
            ) from error
        if response.status >= 400:
            raise ServerError(response.status, _message(data))
        return data


class _Fields(dict[str, Any]):
    """A JSON object of another program lacks what ours have."""

    def __missing__(self, name: str) -> Any:
        raise click.ClickException(f"the answer has no {name!r}: what answers there is not this sona-stream")


def _decoded(data: bytes) -> _Fields | None:
    """All that the server says is a JSON object; None: this is none."""
    try:
        found = json.loads(data)
    except ValueError:
        return None
    return _Fields(found) if isinstance(found, dict) else None


def _start(data: bytes) -> str:
    text = " ".join(data[:200].decode("utf-8", "replace").split())
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def address(url: str, option: str = "--base-url") -> urllib.parse.SplitResult:
    """The parts of what this option was given; without a scheme it is http. Raises click.BadParameter."""
    try:
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        named = parts.scheme in ("http", "https") and parts.hostname
        (parts.hostname or "").encode("idna")
        _ = parts.port  # read once, because that is what checks it
    except ValueError as error:
        raise click.BadParameter(f"{url!r} is not an http(s) URL: {error}", param_hint=option) from None
    if not named:
        raise click.BadParameter(f"{url!r} is not an http(s) URL", param_hint=option)
    return parts


def _key(given: str) -> str:
    """Without the end of line that a file or a pasted key brings along."""
    key = given.strip()
    if not (key.isascii() and key.isprintable()):
        raise click.BadParameter(
            "the key has characters that no header can carry; is it whole, and one line?",
            param_hint="--api-key or SONA_API_KEY",
        )
    return key


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
