"""Whole programs: `sona-stream serve` as a child process, talked to over real sockets."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_READY = re.compile(r"ready on (http\S+)")


class Program:
    """A running `sona-stream serve`."""

    def __init__(self, arguments: list[str], state: Path, log: Path, timeout: float = 120.0) -> None:
        self.state, self._log = state, log
        command = [sys.executable, "-m", "sona_stream.cli", "serve", "--port", "0", "--state-dir", str(state)]
        self._stderr = log.open("ab")
        self.process = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "2"},
        )
        self.url = ""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(timeout) or not self.url:
            self.stop(signal.SIGKILL)
            raise RuntimeError(f"the server did not get ready:\n{self.log}")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if match := _READY.search(line):
                self.url = match.group(1)
                self._ready.set()
        self._ready.set()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self, number: int = signal.SIGTERM, timeout: float = 30.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(timeout)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reader.join(5)
            if self.process.stdout:
                self.process.stdout.close()
            self._stderr.close()
        return code


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """``serve(*arguments, state=...)`` starts a server; whatever still runs in the end is killed."""
    started: list[Program] = []

    def start(*arguments: str, state: Path | None = None) -> Program:
        log = tmp_path / f"server{len(started)}.log"
        program = Program(list(arguments), state or tmp_path / "state", log)
        started.append(program)
        return program

    yield start
    for program in started:
        if program.process.poll() is None:
            program.stop(signal.SIGKILL)
