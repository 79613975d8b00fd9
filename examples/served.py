"""A running `sona-stream serve` for the examples: on a free port, by default with a state folder that goes away."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["served", "stopped"]


@contextmanager
def served(config: str, *import_path: str, state: Path | None = None) -> Iterator[str]:
    """Yields the server's address once a model answers. ``config`` is YAML; this folder can be imported from.
    ``state``: a folder that is there already and stays.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_text(config)
        paths = [*import_path, str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        kept = str(state or Path(folder, "state"))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "SONA_STREAM_STATE": kept}
        command = [sys.executable, "-m", "sona_stream.cli", "serve", "--port", "0", "--config", str(file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
            try:
                yield _ready(server)
            finally:
                stopped(server)


def stopped(server: subprocess.Popen[str], patience_s: float = 30.0) -> None:
    """On a busy machine it may be slow to end; what it was asked is done all the same."""
    server.terminate()
    try:
        server.wait(timeout=patience_s)
    except subprocess.TimeoutExpired:
        server.kill()


def _ready(server: subprocess.Popen[str]) -> str:
    for line in server.stdout or ():
        if found := re.search(r"ready on (http\S+)", line):
            return found.group(1)
    raise RuntimeError(f"the server ended with code {server.wait()} before it was ready")
