"""Parts measured side by side, each in a process of its own that keeps what it finds; who reports reads it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from .plan import ROOT

__all__ = ["ORDER", "measure"]

ORDER = ("reward", "profiles", "correction", "collapse", "forgetting", "streams", "original")
"""Parts without a figure that other work beside it would disturb, those that take longest first."""


def measure(names: Sequence[str], options: Sequence[str], jobs: int) -> None:
    """Runs `learning.py` with ``options`` for each of these parts, ``jobs`` at a time, and shows their progress and
    errors. Raises SystemExit, when all have ended, with the names of those that failed.
    """
    with ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(lambda name: _run([*options, "--only", name]), names))
    if failed := [name for name, code in zip(names, codes, strict=True) if code]:
        sys.exit(
            f"not measured: {', '.join(failed)}; what was measured is kept, the same command goes on from there"
        )


def _run(options: Sequence[str]) -> int:
    command = [sys.executable, str(ROOT / "benchmarks" / "learning.py"), *options]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
