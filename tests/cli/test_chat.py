"""`sona-stream chat` at a terminal: a pseudo-terminal, keys typed, Ctrl-C pressed."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from program import until

ANSI = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]")


# What a shell started in the background ignores Ctrl-C, and so would all that it starts.
_HEARING = (
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])",
)


class Terminal:
    """A child process at a terminal of its own."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.master, slave = pty.openpty()
        # The leader of a new session gets the terminal that it opens first as its own.
        opens = f'exec "$@" <{os.ttyname(slave)} >{os.ttyname(slave)} 2>&1'
        self.process = subprocess.Popen(
            ["sh", "-c", opens, "sh", *_HEARING, sys.executable, "-m", "sona_stream.cli", *arguments],
            start_new_session=True,
            env={**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1", **environment},
        )
        self._slave = slave  # kept open: until the child has opened it, reading would end at once
        self.seen = b""

    def wait_for(self, wanted: str, *, seconds: float = 60.0) -> str:
        """Everything up to and with ``wanted``, without colours."""
        deadline = time.monotonic() + seconds
        while (at := (plain := ANSI.sub(b"", self.seen)).find(wanted.encode())) < 0:
            assert time.monotonic() < deadline, plain.decode(errors="replace")
            assert self.process.poll() is None or select.select([self.master], [], [], 0)[0], plain
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536)
        self.seen = plain[at + len(wanted) :]
        return plain[: at + len(wanted)].decode(errors="replace").replace("\r\n", "\n")

    def say(self, line: str) -> str:
        """Type a line; what is shown until the next prompt."""
        os.write(self.master, line.encode() + b"\n")
        return self.wait_for("\n> ")

    def interrupt_until(self, wanted: str) -> str:
        """Everything up to ``wanted``, which a Ctrl-C makes show, pressed as often as it takes: `input` sleeps
        through one that comes just after it has shown its prompt.
        """
        for _ in range(60):
            os.write(self.master, b"\x03")
            with contextlib.suppress(AssertionError):
                return self.wait_for(wanted, seconds=1.0)
        raise AssertionError("Ctrl-C showed nothing")

    def close(self) -> int:
        return self.process.wait(30)

    def release(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._slave)
        os.close(self.master)


@pytest.fixture
def opened():
    """``opened(*arguments, **environment)``: `sona-stream ARGUMENTS` at a terminal that is gone in the end."""
    terminals = []

    def start(*arguments, **environment):
        terminals.append(Terminal(*arguments, **environment))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.release()


def test_a_chat_with_a_running_server(shared, tenant, opened):
    terminal = opened(
        "chat", "--base-url", shared.url, "--temperature", "0", "--max-tokens", "12", SONA_API_KEY=tenant.key
    )
    terminal.wait_for("\n> ")
    assert "there is no answer to judge yet" in terminal.say("/good")
    first = terminal.say("the quick brown fox")
    assert tenant.ask("the quick brown fox", max_tokens=12).text.split()[0] in first
    assert re.search(r"\[published -> tiny/t\d+/\*@1", terminal.say("/bad"))
    assert "say what the answer should have been" in terminal.say("/fix")
    assert re.search(r"\[published -> tiny/t\d+/\*@2", terminal.say("/fix the lazy dog"))
    terminal.say("and then?")
    why = terminal.say("/why")
    assert "tiny" in why
    assert re.search(r"adapter +tiny/t\d+/\*@2", why)
    assert re.search(r"learner\.counters\.accepted +\d", terminal.say("/stats"))
    assert "/fix TEXT" in terminal.say("/help")
    os.write(terminal.master, b"/quit\n")
    assert terminal.close() == 0


def test_ctrl_c_stops_an_answer_and_not_the_chat(shared, tenant, opened):
    terminal = opened(
        "chat", "--base-url", shared.url, "--api-key", tenant.key, "--max-tokens", "3000", "--temperature", "0"
    )
    terminal.wait_for("\n> ")
    begins = tenant.ask("the quick brown fox", max_tokens=8, temperature=0).text[:6]
    assert begins not in "the quick brown fox", "a terminal shows what is typed, now and then twice"
    for _ in range(5):  # the whole answer may have come before the key does
        terminal.say("/new")
        os.write(terminal.master, b"the quick brown fox\n")
        terminal.wait_for(begins)
        if "[stopped]" in terminal.interrupt_until("\n> "):
            break
    else:
        pytest.fail("no answer was stopped")
    terminal.interrupt_until("\n> ")
    os.write(terminal.master, b"/bad\n")
    terminal.wait_for("published")
    terminal.wait_for("\n> ")
    os.write(terminal.master, b"\x04")
    assert terminal.close() == 0


@pytest.mark.parametrize("end", ["quit", "kill"])
def test_a_chat_with_a_server_of_its_own_leaves_none_behind(shared, tenant, tmp_path, opened, end):
    config = tmp_path / "config.yaml"  # a second server in front of the first: it is there at once
    behind = {"model": "openai/tiny", "api_base": f"{shared.url}/v1", "api_key": tenant.key}
    config.write_text(json.dumps({"model_list": [{"model_name": "tiny", "litellm_params": behind}]}))
    terminal = opened("chat", "--config", str(config), SONA_STREAM_STATE=str(tmp_path / "state"))
    shown = terminal.wait_for("\n> ")
    server = _child(terminal.process.pid)
    assert "connected to" in shown
    assert "feedback moves routing, no weights" in shown
    if end == "quit":
        assert "INFO" not in terminal.say("hello")
        assert "out of reach" in terminal.say("/good")
        os.write(terminal.master, b"/quit\n")
        assert terminal.close() == 0
    else:
        terminal.process.send_signal(signal.SIGKILL)
        terminal.close()
    until(lambda: not _is_there(server), seconds=30)


def _child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def _is_there(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
