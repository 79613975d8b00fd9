"""What a part of `benchmarks/learning.py` is given, and how what it measured is kept.

A part is a module with ``add_rows(report, run)``. Whatever takes long goes through `Run.kept`, under a name that
holds the seed: a run that was cut off goes on with what is not measured yet. What was measured by other code or
under other `circumstances` is measured again; the number of threads changes no figure and is none of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from original import Original

from sona_stream.errors import SonaError

from .stream_text import DOMAINS, SHIFT, file_of

__all__ = ["ROOT", "Clock", "Run", "circumstances", "say", "state_of_code"]

ROOT = Path(__file__).parents[2]
_DECIDES = (
    "sona_stream",
    "adapters",
    "benchmarks/guide_parts",
    "benchmarks/learning_parts",
    "benchmarks/original",
)
_SUFFIXES = {".py", ".js", ".json", ".jsonl", ".txt"}
_WORTH_SAYING = 10.0  # seconds
_ALSO = ("benchmarks/learning_data", "examples/live_adaptation.py", "examples/served.py")
_LIBRARIES = ("torch", "transformers", "numpy", "numba", "onnxruntime")


def state_of_code() -> str:
    """A digest of everything that decides what is measured."""
    digest = hashlib.sha256()
    files = [path for name in (*_DECIDES, *_ALSO) for path in [ROOT / name, *sorted((ROOT / name).rglob("*"))]]
    for path in files:
        if path.is_file() and path.suffix in _SUFFIXES:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def circumstances(data: Path | None) -> dict[str, Any]:
    """What else decides: versions of ``libraries`` and of Python (whose standard library is one of the texts),
    whether servers have the ``contextual`` encoder, and names and sizes of the ``texts`` that `data` has.
    """
    libraries = {name: _version(name) for name in _LIBRARIES}
    files = [] if data is None else [file_of(domain, data) for domain in sorted({*DOMAINS, *SHIFT})]
    texts = {file.name: file.stat().st_size for file in files if file.is_file()}
    libraries["python"] = platform.python_version()
    return {"libraries": libraries, "contextual": _reads_paraphrases(), "texts": texts}


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


@cache
def _reads_paraphrases() -> bool:
    """Whether the encoder loads, asked as the server does."""
    from sona_stream_adapters.embedders import onnx

    try:
        onnx.create_embedder({"download": False})
    except SonaError:
        return False
    return True


@dataclasses.dataclass
class Run:
    """One run's circumstances."""

    quick: bool = False
    data: Path | None = None
    """folder with `stream_text`; None: what needs it has rows without values, and a note"""
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

    @cached_property
    def circumstances(self) -> dict[str, Any]:
        """Of this run."""
        return circumstances(self.data)

    def kept(self, name: str, measure: Callable[[], Any]) -> Any:
        """What ``measure`` gives, as JSON; from its file when this code measured it under these circumstances."""
        if self.folder is None:
            return json.loads(json.dumps(measure()))
        file = self.folder / f"{name}{'.quick' if self.quick else ''}.json"
        if file.is_file():
            told = json.loads(file.read_text())
            if (told["code"], told.get("circumstances")) == (self.code, self.circumstances):
                if told["seconds"] >= _WORTH_SAYING:
                    say(f"{name}: kept in {file}")
                return told["value"]
        clock = Clock()
        value = measure()
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        seconds, cpu = clock.read()
        told = {"code": self.code, "circumstances": self.circumstances}
        told |= {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "value": value}
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
