"""A real LiteLLM proxy as a child process, in a virtual environment of its own that is kept for the next run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from platformdirs import user_cache_path

REQUIREMENT = "litellm[proxy]>=1.100,<1.109"
MASTER_KEY = "sk-litellm-of-the-tests"
_START_S = 180.0


def litellm_environment() -> Path:
    """Folder of the virtual environment; made (two minutes) where there is none for this requirement."""
    digest = REQUIREMENT.translate(str.maketrans("[]<>=,", "------"))
    folder = (
        user_cache_path("sona_stream") / "tests" / f"{digest}-{sys.version_info.major}.{sys.version_info.minor}"
    )
    ready = folder / "READY"
    if not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--compile", REQUIREMENT]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{REQUIREMENT} could not be installed:\n{done.stderr[-4000:]}")
        ready.touch()
    return folder


class LiteLLM:
    """Running until `stop`."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        """``settings`` is its configuration file, but for the master key."""
        environment = litellm_environment()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        general = {**settings.get("general_settings", {}), "master_key": MASTER_KEY}
        config = folder / "litellm.yaml"
        config.write_text(json.dumps({**settings, "general_settings": general}))  # JSON is YAML
        self._log = folder / "litellm.log"
        command = [str(environment / "bin" / "litellm"), "--config", str(config)]
        quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "NO_DOCS": "True"}
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **quiet},
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        while not self._is_up():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"LiteLLM did not start:\n{self.log[-4000:]}")
            time.sleep(0.3)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _is_up(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health/liveliness", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
