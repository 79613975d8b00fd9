"""Engines in processes of their own, told what to do."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["ON_CPU", "Engine", "engine"]

ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
_STOP_S = 30.0


class Engine:
    """One of them."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log
        self.answer()

    def __call__(self, do: str, **arguments: Any) -> dict[str, Any]:
        """A method of `engine_child.Child` by its name."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line. Raises RuntimeError with the child's last words when it has died."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine died:\n{self._log.read_text(errors='replace')[-4000:]}")
        return dict(json.loads(line))


@contextmanager
def engine(python: Path, model: Path, *, plugin: bool, folder: Path) -> Iterator[Engine]:
    """With the plug-in, or vLLM as it comes. What it prints goes to `folder`."""
    kind = "plugin" if plugin else "plain"
    own = (
        {"SONA_VLLM": "1", "SONA_VLLM_KEY": "benchmark", "VLLM_PLUGINS": "sona"} if plugin else {"VLLM_PLUGINS": ""}
    )
    log = folder / f"{kind}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [str(python), str(Path(__file__).with_name("engine_child.py")), str(model), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **ON_CPU, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", **own},
        )
    try:
        yield Engine(process, log)
    finally:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # it ends with its last command
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()
