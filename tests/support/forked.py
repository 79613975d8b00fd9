"""Python in child processes that need not import numba, torch and transformers each: five seconds of a core.

One process imports them, does nothing else (so it has one thread) and forks whenever a program is asked for. What
it forks is a process as any other, with its own id, signals, files, environment and exit code; only the
interpreter's end is short.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping
from importlib import import_module
from runpy import run_module, run_path
from types import MappingProxyType
from typing import Any

__all__ = ["Forked", "stop"]

IMPORTED = (
    "httpx",
    "sona_stream.app",
    "sona_stream.kernels.compiled",
    "sona_stream.server.run",
    "sona_stream.store",
    "sona_stream_adapters.local.model",
    "sona_stream_adapters.vllm",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
)


class Forked:
    """`python ARGUMENTS` with this whole environment; the part of `subprocess.Popen` that tests use.

    Arguments begin with a script or with ``-m`` and a module. ``constants`` of the product's modules have other
    values there: ``{"package.module.NAME": value}``.
    """

    def __init__(
        self,
        arguments: list[str],
        environment: Mapping[str, str],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        constants: Mapping[str, Any] = MappingProxyType({}),
    ):
        _, control = _forking()
        self._report, report = os.pipe()
        order = {"arguments": arguments, "environment": {**environment}, "constants": {**constants}}
        control.send(json.dumps({**order, "folder": os.getcwd()}).encode())
        socket.send_fds(control, [b"f"], [stdin, stdout, stderr, report])
        os.close(report)
        self.pid = int(control.recv(32))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._wait(0.0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._wait(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._report], [], [], timeout)[0]:
            self.returncode = int(os.read(self._report, 32))
            os.close(self._report)
        return self.returncode


@functools.cache
def _forking() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The process that forks, and the way to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, __file__, str(theirs.fileno())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment)
    return process, ours


def stop() -> None:
    """End the process that forks, if there is one, and what it forked and nobody has stopped."""
    if _forking.cache_info().currsize:
        process, control = _forking()
        _forking.cache_clear()
        control.close()
        process.wait(30)


@dataclasses.dataclass
class _Job:
    arguments: list[str]
    environment: dict[str, str]
    constants: dict[str, Any]
    folder: str
    files: list[int]


def _next_job(control: socket.socket) -> _Job | None:
    """Comes back in each fork, and without a job when nobody wants another one."""
    reports: dict[int, int] = {}
    waking, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a terminal is for pytest
    while True:
        readable, _, _ = select.select([control, waking], [], [])
        if waking in readable:
            os.read(waking, 4096)
            _reap(reports)
        if control not in readable:
            continue
        if not (order := control.recv(1 << 20)):
            for pid in reports:
                os.kill(pid, signal.SIGKILL)
            return None
        _, (*files, report), _, _ = socket.recv_fds(control, 1, 4)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            control.close()
            for fd in (waking, wake, report, *reports.values()):
                os.close(fd)
            return _Job(**json.loads(order), files=files)
        reports[pid] = report
        for fd in files:
            os.close(fd)
        control.send(str(pid).encode())


def _reap(reports: dict[int, int]) -> None:
    while reports:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with os.fdopen(reports.pop(pid), "w") as report:
            report.write(str(os.waitstatus_to_exitcode(status)))


def _main(fd: int) -> None:
    sys.path[0] = os.getcwd()  # as with `python -m sona_stream.cli`
    for name in IMPORTED:
        import_module(name)
    gc.collect()
    gc.freeze()
    job = _next_job(socket.socket(fileno=fd))
    if job is None:
        return
    for standard, given in enumerate(job.files):
        os.dup2(given, standard)
        os.close(given)
    os.chdir(job.folder)
    os.environ.clear()
    os.environ.update(job.environment)
    if job.environment.get("PYTHONWARNINGS") == "error":
        warnings.simplefilter("error")
    for name, value in job.constants.items():
        module, _, constant = name.rpartition(".")
        assert hasattr(import_module(module), constant), name
        setattr(import_module(module), constant, value)
    _exit(_run(job))


def _run(job: _Job) -> int:
    module = job.arguments[1] if job.arguments[0] == "-m" else None
    script = job.arguments[0]
    sys.argv[:] = job.arguments[1:] if module else job.arguments
    sys.path[0] = job.folder if module else os.path.dirname(script)
    try:
        if module:
            run_module(module, run_name="__main__", alter_sys=True)
        else:
            run_path(script, run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _exit(code: int) -> None:
    """As `multiprocessing` ends a fork: to take down modules that were never used takes a third of a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
