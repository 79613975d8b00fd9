"""What the commands say when something else answers, nothing does, or the server goes away while they wait."""

from __future__ import annotations

import http.server
import json
import socket
import struct
import threading

import pytest
import yaml
from click.testing import CliRunner

from sona_stream.cli import main
from sona_stream.cli.connection import Connection
from sona_stream.config.load import hash_key, read_settings
from sona_stream.config.settings import KeySettings

PAGE = b"<!doctype html><title>Another program</title>"


class Other(http.server.BaseHTTPRequestHandler):
    """Answers everything with what the test says; keeps what it was asked."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append((self.path, dict(self.headers), body))  # type: ignore[attr-defined]
        self.server.answer(self)  # type: ignore[attr-defined]

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass

    def say(self, body: bytes, kind: str = "application/json", *, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("x-sona-request-id", "r1")
        self.send_header("content-length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


@pytest.fixture
def other():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other)
    server.asked, server.answer = [], lambda handler: handler.say(PAGE, "text/html")
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run(*arguments, code=0, given=None):
    result = CliRunner().invoke(main, list(map(str, arguments)), input=given)
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize("words", [("chat",), ("adapters", "list"), ("freeze",), ("memory", "list")])
@pytest.mark.parametrize("page", [PAGE, b"", b"[1, 2]", b"\xff\xfe"])
def test_another_program_is_told_apart(other, words, page):
    other.answer = lambda handler: handler.say(page, "text/html")
    said = run(*words, "--base-url", other.url, code=1).output
    assert f"what answers at {other.url} is not sona-stream" in said
    assert "--base-url" in said
    assert said.count("\n") == 1


def test_json_of_another_program_is_told_apart(other):
    other.answer = lambda handler: handler.say(b'{"ok": true}')
    for words in (("adapters", "list"), ("memory", "list")):
        assert "no 'data'" in run(*words, "--base-url", other.url, code=1).output


@pytest.mark.parametrize(
    "address",
    ["http://h:99999", "http://h:abc", "http://[::1", "h:abc", "http://h..x", "http://" + "a" * 70 + ".x"],
)
@pytest.mark.parametrize("words", [("chat",), ("freeze",)])
def test_an_address_that_is_none_is_named(address, words):
    said = run(*words, "--base-url", address, code=2).output
    assert f"{address!r} is not an http(s) URL" in said
    assert "--base-url" in said


def test_a_key_from_a_file_may_end_its_line(other, monkeypatch):
    other.answer = lambda handler: handler.say(b"{}")
    monkeypatch.setenv("SONA_API_KEY", "sk-x\n")
    run("freeze", "--base-url", other.url)
    assert other.asked[0][1]["authorization"] == "Bearer sk-x"
    monkeypatch.setenv("SONA_API_KEY", " \n")
    run("freeze", "--base-url", other.url)
    assert "authorization" not in other.asked[1][1]


@pytest.mark.parametrize("key", ["sk-x\nsk-y", "sk—x", "sk\x00"])
def test_a_key_that_is_none_is_refused_and_not_repeated(key):
    said = run("freeze", "--base-url", "http://127.0.0.1:9", "--api-key", key, code=2).output
    assert "SONA_API_KEY" in said
    assert key not in said


def _reset(handler: Other) -> None:
    """The way a killed server's machine answers."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()
    handler.rfile.close()


def _half(handler: Other) -> None:
    handler.say(b'{"status"', length=100)
    handler.close_connection = True


def _half_reset(handler: Other) -> None:
    handler.say(b'{"status"', length=100)
    _reset(handler)


def _answer(handler: Other) -> None:
    delta = {"choices": [{"delta": {"content": "Forty"}}]}
    handler.say(b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(delta).encode(), "text/event-stream")


@pytest.mark.parametrize("dies", [_reset, _half, _half_reset])
@pytest.mark.parametrize("judged", ["/good", "/fix Fifty", "/undo", "/stats"])
def test_the_conversation_outlives_the_server(other, dies, judged):
    def answer(handler: Other) -> None:
        if handler.path == "/v1/chat/completions":
            _answer(handler)
        elif handler.path == "/health/readiness":
            handler.say(b"{}")
        else:
            dies(handler)

    other.answer = answer
    said = run("chat", "--base-url", other.url, given=f"How long?\n{judged}\nAnd then?\n/quit\n").output
    assert "went away" in said or "no server answers" in said
    (last,) = [json.loads(body) for path, _, body in other.asked if path == "/v1/chat/completions"][1:]
    assert [turn["content"] for turn in last["messages"]] == ["How long?", "Forty", "And then?"]


def test_nulls_in_an_upstreams_chunks_are_absences(other):
    chunks = (
        {"choices": None, "error": None},
        {"choices": [{"delta": None}], "error": None},
        {"choices": [{"delta": {"content": "Forty"}, "finish_reason": "stop"}], "error": None},
    )
    stream = b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"
    other.answer = lambda handler: handler.say(stream, "text/event-stream")
    with Connection(other.url, None).stream_chat({"model": "m"}) as answer:
        assert list(answer) == ["Forty"]
        assert answer.finish_reason == "stop"


def test_an_answer_that_is_no_stream_of_ours_is_no_traceback(other):
    def answer(handler: Other) -> None:
        handler.say(b"{}" if handler.path == "/health/readiness" else b"data: <p>\n\n", "text/event-stream")

    other.answer = answer
    said = run("chat", "--base-url", other.url, given="How long?\nAgain?\n/quit\n").output
    assert said.count("the answer is not one of sona-stream: '<p>'") == 2


def test_a_new_key_comes_with_an_entry_that_loads(tmp_path):
    result = run("keys", "hash", "--new")
    key = result.stderr.splitlines()[0].split()[-1]
    assert key.startswith("sk-sona-")
    assert key not in result.stdout
    file = tmp_path / "config.yaml"
    block = "".join(f"    {line}\n" for line in result.stdout.splitlines())
    file.write_text(f"model_list: [{{model_name: m, litellm_params: {{model: x}}}}]\nsona:\n  keys:\n{block}")
    settings, warnings = read_settings(file, backends={"openai"})
    assert settings.sona.keys == (KeySettings(key=hash_key(key)),)
    assert warnings == []
    assert yaml.safe_load(result.stdout)[0]["key"] == hash_key(key)
