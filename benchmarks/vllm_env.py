"""The virtual environment in which vLLM runs: the one that SONA_STREAM_VLLM_ENV names, or one that `.ci/vllm-env`
makes in the user's cache folder (minutes and about 3 GB, the first time).
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from sona_stream.config.folders import cache_dir

__all__ = ["VARIABLE", "VllmUnavailable", "vllm_python", "vllm_version"]

VARIABLE = "SONA_STREAM_VLLM_ENV"
_SCRIPT = Path(__file__).parents[1] / ".ci" / "vllm-env"


class VllmUnavailable(RuntimeError):
    """There is no such environment and none can be made; the message says why."""


def _folder() -> Path:
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else cache_dir() / "vllm-env"


def vllm_version() -> str | None:
    """The one in it; None before it is made."""
    libraries = map(str, _folder().glob("lib/python*/site-packages"))
    return next((found.version for found in metadata.distributions(name="vllm", path=[*libraries])), None)


def vllm_python() -> Path:
    """Its interpreter. An environment that the variable names is used as it is."""
    named, folder = os.environ.get(VARIABLE), _folder()
    python = folder.absolute() / "bin" / "python"
    if named:
        if not python.exists():
            raise VllmUnavailable(f"{VARIABLE}={named}: {python} does not exist; `.ci/vllm-env {named}` makes it")
        return python
    if not _SCRIPT.exists():
        raise VllmUnavailable(f"{_SCRIPT} is missing (it comes with the repository); set {VARIABLE} instead")
    print(f"vLLM's environment: {folder} ({VARIABLE} names another)", file=sys.stderr, flush=True)
    made = subprocess.run([str(_SCRIPT), str(folder)], stdout=sys.stderr, check=False)
    if made.returncode:
        raise VllmUnavailable(f"{_SCRIPT} {folder} failed with {made.returncode}; its own words are above")
    return python
