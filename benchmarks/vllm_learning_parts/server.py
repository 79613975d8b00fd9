"""`vllm serve` with the plug-in as a child of the benchmark."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

__all__ = ["forget_prefixes", "vllm_server"]

_START_S = 600.0
_STOP_S = 30.0

_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
_ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@contextmanager
def vllm_server(python: Path, model: Path, *, name: str, key: str, threads: int, log: Path) -> Iterator[str]:
    """Yields its address. ``key`` is its SONA_VLLM_KEY; what it writes goes to ``log``, whose end is shown when it
    does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(python), "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--served-model-name", name]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "1024", "--max-num-seqs", "32"]
    own = {
        "SONA_VLLM": "1",
        "SONA_VLLM_KEY": key,
        "VLLM_PLUGINS": "sona,sona_http",
        "VLLM_SERVER_DEV_MODE": "1",  # for /reset_prefix_cache
        "OMP_NUM_THREADS": str(threads),
    }
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_QUIET, **_ON_CPU, **own},
            start_new_session=True,
        )
    try:
        base_url = f"http://127.0.0.1:{port}"
        _wait(process, base_url, log)
        yield base_url
    finally:
        _stop(process)


def forget_prefixes(base_url: str) -> None:
    """Empties the prefix cache: what is asked next finds the same state as after any other call of this."""
    httpx.post(f"{base_url}/reset_prefix_cache", timeout=60).raise_for_status()


def _wait(process: subprocess.Popen[bytes], base_url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not _is_up(base_url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(
                f"vllm serve did not start; its last words:\n{log.read_text(errors='replace')[-4000:]}"
            )
        time.sleep(0.5)


def _is_up(base_url: str) -> bool:
    try:
        return httpx.get(f"{base_url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """With an open stream its API server would wait for the client: after a while the whole group is killed."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
