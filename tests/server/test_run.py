"""The runner as a process: signals, exit codes, addresses."""

import asyncio
import contextlib
import json
import re
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from server_clients import Raw, chat_bytes, data_events
from server_fakes import FakeServices

from sona_stream.config.settings import SonaSettings
from sona_stream.errors import ConfigError
from sona_stream.server import create_app
from sona_stream.server.run import serve

PROGRAM = str(Path(__file__).parent / "served_program.py")


@contextlib.asynccontextmanager
async def program(log, mode, *more):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", PROGRAM, str(log), mode, *more,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process):
    return (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()


async def up(process):
    listening, ready = await line(process), await line(process)
    url = re.fullmatch(r"listening on (http://127\.0\.0\.1:[1-9]\d*)", listening)[1]
    assert ready == f"ready on {url}"
    return url


async def stopped(process):
    error = (await asyncio.wait_for(process.communicate(), 10))[1].decode()
    return process.returncode, error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_an_idle_server_with_code_0(tmp_path, number):
    async with program(tmp_path / "log", "short") as process:
        url = await up(process)
        async with Raw(url) as idle:
            idle.writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await idle.reply()).json() == {"status": "ok"}
            process.send_signal(number)
            assert await stopped(process) == (0, "")
            assert await idle.reader.read() == b""
    assert (tmp_path / "log").read_text() == "startup\nshutdown after []\n"


async def test_running_answers_end_in_the_grace_period(tmp_path):
    async with program(tmp_path / "log", "short") as process:
        url = await up(process)
        async with Raw(url) as client:
            client.post("/v1/chat/completions", chat_bytes())
            await client.head()
            process.send_signal(signal.SIGTERM)
            body = b""
            while data := await client.chunk():
                body += data
            assert data_events(body)[-1] == b"[DONE]"
            with pytest.raises(OSError):
                await Raw(url).__aenter__()
            assert await stopped(process) == (0, "")
    assert "['complete']" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(("mode", "signals"), [("hanging", 1), ("stubborn", 2)])
async def test_answers_past_the_grace_are_cut_off_with_an_error_event(tmp_path, mode, signals):
    async with program(tmp_path / "log", mode) as process:
        url = await up(process)
        async with Raw(url) as client, Raw(url) as other:
            client.post("/v1/chat/completions", chat_bytes())
            other.post("/v1/chat/completions", chat_bytes(stream=False))
            await client.head()
            began = time.monotonic()
            for _ in range(signals):
                process.send_signal(signal.SIGINT)
                await asyncio.sleep(0.1)
            body = b""
            while data := await client.chunk():
                body += data
            assert json.loads(data_events(body)[-1])["error"]["code"] == "shutting_down"
            assert b"[DONE]" not in body
            assert (await other.reply()).status == 503
            code, error = await stopped(process)
            assert code == 0
            assert "Traceback" not in error
            assert time.monotonic() - began < 7, "a second signal ends the grace of 9 s"
    log = (tmp_path / "log").read_text()
    assert log.endswith("shutdown after ['CancelledError', 'CancelledError']\n"), "after every answer had ended"


async def test_listening_comes_before_ready(tmp_path):
    async with program(tmp_path / "log", "loading") as process:
        url = (await line(process)).removeprefix("listening on ")
        async with Raw(url) as client:
            client.writer.write(b"GET /health/readiness HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await client.reply()).status == 503
        process.send_signal(signal.SIGTERM)
        assert await stopped(process) == (0, "")
        assert "shutdown" in (tmp_path / "log").read_text()


async def test_a_failed_start_says_why_and_leaves_no_process(tmp_path):
    async with program(tmp_path / "log", "broken") as process:
        code, error = await stopped(process)
    assert code == 1
    assert "error: the state folder is held by another process" in error
    assert "Traceback" not in error


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use"):
            serve(create_app(FakeServices()), port=port)


def test_an_open_address_without_keys_is_refused():
    with pytest.raises(ConfigError, match=r"sona\.keys"):
        serve(create_app(FakeServices()), "0.0.0.0", 0)


def test_an_address_of_another_machine_is_refused():
    services = FakeServices(sona=SonaSettings(keys=()))
    with pytest.raises(ConfigError):
        serve(create_app(services), "192.0.2.1", 0)
