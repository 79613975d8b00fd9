"""What a part of `benchmarks/learning.py` is given, and how what it measured is kept.

A part is a module with ``add_rows(report, run)``. Whatever takes long goes through `Run.kept`, under a name that
holds the seed: a run that was cut off goes on with what is not measured yet.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from original import Original

__all__ = ["ROOT", "Clock", "Run", "say", "state_of_code"]

ROOT = Path(__file__).parents[2]
_DECIDES = ("sona_stream", "adapters", "benchmarks/learning_parts", "benchmarks/original")
_SUFFIXES = {".py", ".js", ".json", ".jsonl", ".txt"}
_WORTH_SAYING = 10.0  # seconds
_ALSO = ("benchmarks/learning_data", "examples/live_adaptation.py")


def state_of_code() -> str:
    """A digest of everything that decides what is measured."""
    digest = hashlib.sha256()
    files = [path for name in (*_DECIDES, *_ALSO) for path in [ROOT / name, *sorted((ROOT / name).rglob("*"))]]
    for path in files:
        if path.is_file() and path.suffix in _SUFFIXES:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@dataclasses.dataclass
class Run:
    """One run's circumstances."""

    quick: bool = False
    data: Path | None = None
    """folder with `stream_text`; None: what needs it is left out, with a note"""
    out: Path | None = None
    """the report's file; measurements are kept beside it, and so are plots"""
    keeps: Path | None = None
    """folder for measurements, when it is another"""
    original: Original | None = None
    """None without node"""
    threads: int = 1
    """of the model"""
    code: str = dataclasses.field(default_factory=state_of_code)

    @property
    def seeds(self) -> range:
        """One when it has to be quick."""
        return range(1 if self.quick else 5)

    @property
    def folder(self) -> Path | None:
        """Of what is kept; None: nothing is."""
        return self.keeps or self.beside("kept")

    def kept(self, name: str, measure: Callable[[], Any]) -> Any:
        """What ``measure`` gives, as JSON; from its file when the same code measured it before."""
        if self.folder is None:
            return json.loads(json.dumps(measure()))
        file = self.folder / f"{name}{'.quick' if self.quick else ''}.json"
        if file.is_file():
            told = json.loads(file.read_text())
            if told["code"] == self.code:
                if told["seconds"] >= _WORTH_SAYING:
                    say(f"{name}: kept in {file}")
                return told["value"]
        clock = Clock()
        value = measure()
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        seconds, cpu = clock.read()
        told = {"code": self.code, "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "value": value}
        part.write_text(json.dumps(told) + "\n")
        part.replace(file)
        if seconds >= _WORTH_SAYING:
            say(f"{name}: {seconds:.0f} s, {cpu:.0f} s of a core")
        return json.loads(json.dumps(value))

    def beside(self, suffix: str) -> Path | None:
        """A file beside the report, such as a plot."""
        return None if self.out is None else self.out.with_name(f"{self.out.stem}.{suffix}")


class Clock:
    """What something takes: on the wall, and of the processor, servers that have ended included."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), self._spent()

    def read(self) -> tuple[float, float]:
        """Seconds of both since it was made."""
        return time.monotonic() - self._wall, self._spent() - self._cpu

    @staticmethod
    def _spent() -> float:
        return sum(os.times()[:4])


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)
