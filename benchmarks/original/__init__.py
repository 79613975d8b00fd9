"""The npm package that the guide describes, as a partner of interleaved rounds.

``probe.js`` runs in a node process of its own and answers one JSON line for each JSON line. The package is
installed by npm into a cache folder; nothing here is needed to run sona_stream.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["Original", "OriginalUnavailable"]

_HERE = Path(__file__).parent
_FILES = ("package.json", "probe.js", "learn.js", "vectors.js")


class OriginalUnavailable(RuntimeError):
    """Node, npm or the package cannot be had; the message says which."""


class Original:
    """``with Original.start() as original: original.ask("micro", name="r", n=100)``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._node = subprocess.Popen(
            ["node", "--expose-gc", "probe.js"],
            cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            self.version: str = self.ask("version")["version"]
        except BaseException:
            self.close()
            raise

    @classmethod
    def start(cls, cache: Path) -> Original:
        """Installs into ``cache`` when it is not there yet. Raises OriginalUnavailable."""
        for program in ("node", "npm"):
            if shutil.which(program) is None:
                raise OriginalUnavailable(f"{program} is not installed")
        return cls(_install(cache))

    def ask(self, op: str, **options: Any) -> dict[str, Any]:
        """One operation of ``probe.js``; blocks until it is done."""
        stdin, stdout = self._node.stdin, self._node.stdout
        if stdin is None or stdout is None:
            raise OriginalUnavailable("the probe has no pipes")
        try:
            stdin.write(json.dumps({"op": op, **options}) + "\n")
            stdin.flush()
        except BrokenPipeError as error:
            raise OriginalUnavailable(f"the original ended before {op}") from error
        line = stdout.readline()
        if not line:
            raise OriginalUnavailable(f"the original ended during {op} (exit {self._node.wait()})")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def memory(self, profile: str, n: int) -> dict[str, float]:
        """RSS growth in bytes of a fresh process holding ``n`` one-step trajectories."""
        try:
            run = subprocess.run(
                ["node", "--expose-gc", "probe.js", "memory", profile, str(n)],
                cwd=self._folder, capture_output=True, text=True, check=True, timeout=120,
            )  # fmt: skip
        except subprocess.SubprocessError as error:
            raise OriginalUnavailable(f"the original did not tell its memory: {error}") from error
        answer: dict[str, float] = json.loads(run.stdout)
        return answer

    def close(self) -> None:
        """Ends the node process."""
        for pipe in (self._node.stdin, self._node.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._node.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._node.kill()
            self._node.wait()

    def __enter__(self) -> Original:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _install(cache: Path) -> Path:
    """Copies the probe and has npm fetch the pinned package beside it, once."""
    pinned: dict[str, str] = json.loads((_HERE / "package.json").read_text())["dependencies"]
    (name, version), *_ = pinned.items()
    folder = cache / f"original-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    for file in _FILES:
        shutil.copyfile(_HERE / file, folder / file)
    installed = folder / "node_modules" / name / "package.json"
    if not installed.exists() or json.loads(installed.read_text())["version"] != version:
        command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
        try:
            run = subprocess.run(
                command, check=False, cwd=folder, capture_output=True, text=True, timeout=120,
                env={**os.environ, "CI": "1"},
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise OriginalUnavailable("npm did not finish in 120 s") from error
        if run.returncode:
            last = run.stderr.strip().splitlines()[-1:] or ["no message"]
            raise OriginalUnavailable(f"npm could not install {name} {version}: {last[0]}")
    return folder
