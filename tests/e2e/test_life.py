"""Stops, kills and restarts: what was acknowledged is there again, and nothing is damaged."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import httpx
import pytest
from click.testing import CliRunner
from program import QUICK, command, until, write_config

from sona_stream.cli import main


@pytest.fixture
def config(tiny_folder, tmp_path):
    return str(write_config(tmp_path / "config.yaml", tiny_folder, QUICK))


def _verified(state):
    report = _state("verify", folder=state)
    assert report.exit_code == 0, report.output


def _state(*arguments, folder):
    """`sona-stream state`, in this process."""
    return CliRunner().invoke(main, ["state", *map(str, arguments), "--state-dir", str(folder)])


def test_versions_survive_a_restart_and_kills(serve, config, tmp_path):
    state = tmp_path / "state"
    program = serve("--config", config, state=state, forked=False)
    client = program.client()
    bare = client.ask()
    for _ in range(40):
        if (taught := client.ask()).text != bare.text:
            break
        client.teach(bare, correction="the lazy dog")
    assert taught.text != bare.text
    streams = [_open_stream(client) for _ in range(3)]
    program.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert program.stop(signal.SIGINT) == 0, program.log  # the second one ends the answers' grace
    for thread in streams:
        thread.join(10)
        assert not thread.is_alive()
    assert not _is_there(program.process.pid)
    assert "Traceback" not in program.log
    _verified(state)

    # The first answer after the start has the version that was served before; then a kill comes between the
    # acknowledgement of a feedback and what is learned from it.
    program = serve("--config", config, state=state)
    client = program.client()
    again = client.ask()
    assert (again.adapter, again.text) == (taught.adapter, taught.text)
    acknowledged = []
    for _ in range(3):
        status, outcome = client.feedback(request_id=again.request_id, correction="the lazy dog", wait=False)
        assert status == 202
        acknowledged.append(outcome["id"])
    program.stop(signal.SIGKILL)
    _verified(state)

    program = serve("--config", config, state=state)
    client = program.client()
    until(lambda: client.get("/v1/sona/stats")["learner"]["idle"])
    assert client.ask().version == taught.version + 3
    rows = client.get("/v1/sona/adapters")["data"]
    assert len(rows) == taught.version + 3
    _open_stream(client)
    program.stop(signal.SIGKILL)
    _verified(state)
    _can_be_taken_elsewhere(state, tmp_path, len(rows))


def _can_be_taken_elsewhere(state, tmp_path, versions):
    target, copy = tmp_path / "backup.tar", tmp_path / "copy"
    made = _state("backup", target, folder=state)
    assert made.exit_code == 0, made.output
    assert _state("restore", target, folder=copy).exit_code == 0
    _verified(copy)
    assert len(list((copy / "adapters").rglob("*.safetensors"))) == versions
    again = _state("restore", target, folder=copy)
    assert again.exit_code == 1
    assert "--force" in again.output


def _open_stream(client):
    """A thread that reads a long answer until it ends, however it does."""
    began = threading.Event()

    def read():
        body = {"model": "tiny", "messages": [{"role": "user", "content": "fox"}], "max_tokens": 3000}
        stream = client.http.stream("POST", "/v1/chat/completions", json={**body, "stream": True})
        with contextlib.suppress(httpx.HTTPError), stream as response:
            for _ in response.iter_bytes():
                began.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert began.wait(10)
    return thread


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_state_folder_belongs_to_one_server(shared, tiny_folder):
    second = command("serve", "--model", str(tiny_folder), "--port", "0", "--state-dir", str(shared.state))
    assert second.returncode == 1
    assert str(shared.state) in second.stderr
    assert "Traceback" not in second.stderr
