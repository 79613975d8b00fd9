"""`vllm serve` with the plug-in as a child process; `stop` and `start` are a restart on the same port."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

KEY = "control-key-of-the-tests"
SERVED = "tiny"
_START_S = 300.0


class VllmServe:
    def __init__(self, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self, folder: Path, *arguments: str, plugins: str = "sona,sona_http", **environment: str) -> None:
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder)]
        command += ["--served-model-name", SERVED, "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--max-model-len", "512", "--max-num-seqs", "8", "--dtype", "float32", "--enforce-eager"]
        own = {
            "SONA_VLLM": "1",
            "SONA_VLLM_KEY": KEY,
            "VLLM_PLUGINS": plugins,
            "VLLM_LOGGING_LEVEL": "INFO",
            **environment,
        }
        others = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**others, **own},
                start_new_session=True,
            )
        self._wait()

    def _wait(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + _START_S
        while not self._is_up():
            assert self.process.poll() is None, self.text[-4000:]
            assert time.monotonic() < deadline, self.text[-4000:]
            time.sleep(0.3)

    def _is_up(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, timeout: float = 30.0) -> int | None:
        """The exit code; None when it had to be killed. Its children go with it."""
        process, self.process = self.process, None
        if process is None:
            return None
        code = None
        try:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return code
