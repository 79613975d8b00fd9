"""A server for the length of one command: a child process on a free port."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import click

__all__ = ["own_server"]

_READY = re.compile(r"ready (?:on|at) (http\S+)")


@contextmanager
def own_server(config: str | None) -> Iterator[str]:
    """Start `sona-stream serve` on a free port, yield its address once it answers, stop it in the end.

    What it says before it is ready (the download of a model, an error) is shown; later only warnings are.
    """
    command = [sys.executable, "-m", "sona_stream.cli", "serve", "--port", "0", "--until-eof", "--grace", "5"]
    if config:
        command += ["--config", config]
    # A session of its own: Ctrl-C in the terminal stops an answer, not the server. However this process ends, the
    # pipe to the server's input closes, and the server ends too.
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield _wait_until_ready(process)
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()


def _wait_until_ready(process: subprocess.Popen[str]) -> str:
    output: Iterable[str] = process.stdout or ()
    for line in output:
        if match := _READY.search(line):
            threading.Thread(target=_warn, args=(output,), daemon=True).start()
            return match.group(1)
        click.secho(line.rstrip(), dim=True, err=True)
    raise click.ClickException(f"the server ended with code {process.wait()} before it was ready")


def _warn(output: Iterable[str]) -> None:
    """Keeps reading, or the server would soon wait for its reader."""
    with contextlib.suppress(ValueError):  # closed, in the end
        for line in output:
            if not line.startswith(("INFO", "DEBUG")):
                click.secho(line.rstrip(), dim=True, err=True)
