"""A server for the length of one command: a child process on a free port."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

__all__ = ["own_server"]

_READY = re.compile(r"ready (?:on|at) (http\S+)")


@contextmanager
def own_server(config: str | None) -> Iterator[str]:
    """Start `sona-stream serve` on a free port, yield its address once it answers, stop it in the end.

    What it logs before it is ready (the download of a model, an error) is shown.
    """
    command = [sys.executable, "-m", "sona_stream.cli", "serve", "--port", "0"]
    if config:
        command += ["--config", config]
    # A session of its own: Ctrl-C in the terminal stops an answer, not the server.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield _wait_until_ready(process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


def _wait_until_ready(process: subprocess.Popen[str]) -> str:
    if process.stdout is None:
        raise click.ClickException("the server's output cannot be read")
    for line in process.stdout:
        if match := _READY.search(line):
            return match.group(1)
        click.secho(line.rstrip(), dim=True)
    raise click.ClickException(f"the server ended with code {process.wait()} before it was ready")
