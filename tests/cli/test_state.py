"""`state backup | restore | verify` on states and archives that are not whole."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
from pathlib import Path

import anyio
import numpy as np
import pytest
from click.testing import CliRunner

from sona_stream.cli import main
from sona_stream.config.settings import SonaSettings
from sona_stream.lora import AdapterRecord, LoraWeights, LowRank
from sona_stream.store import SqliteStore


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert result.exit_code == code, result.output
    return result.output


def record(version: int) -> AdapterRecord:
    pair = LowRank(np.full((2, 16), version, np.float32), np.ones((16, 2), np.float32), 0.5)
    return AdapterRecord(
        key="m/acme/*",
        version=version,
        parent=version - 1 or None,
        fingerprint="fp",
        weights=LoraWeights(micro=pair, base=None),
        moments={},
        status="published",
        reason="step",
        metrics={},
        feedback_ids=(),
        created_at=9.0,
    )


@pytest.fixture
def state(tmp_path: Path) -> Path:
    async def fill() -> None:
        async with SqliteStore(SonaSettings(), directory=tmp_path / "state") as store:
            for version in (1, 2):
                await store.put_adapter(record(version))
            await store.put_blob("noise", os.urandom(50_000))
            await store.set_current("m/acme/*", 2, reason="step")

    anyio.run(fill)
    return tmp_path / "state"


def test_a_whole_state_is_told_to_be_sound(state, tmp_path):
    assert run("state", "backup", tmp_path / "b.tar", "--state-dir", state).endswith("\nsound\n")
    said = run("state", "restore", tmp_path / "b.tar", "--state-dir", tmp_path / "new")
    assert said.startswith(f"restored to {tmp_path / 'new'}\n")
    assert said.endswith("\nsound\n")


def test_what_a_backup_lacks_is_told_when_it_is_made_and_when_it_comes_back(state, tmp_path):
    next((state / "adapters").rglob("v1.*")).write_bytes(b"")
    said = run("state", "backup", tmp_path / "b.tar", "--state-dir", state, code=1)
    assert "damaged: adapters/" in said
    said = run("state", "restore", tmp_path / "b.tar", "--state-dir", tmp_path / "new", code=1)
    assert said.startswith("restored to ")
    assert "damaged: adapters/" in said
    assert "1 problems" in said


def test_a_copy_of_the_database_alone_is_told_to_lack_the_files(state, tmp_path):
    said = run("state", "restore", state / "state.sqlite3", "--state-dir", tmp_path / "new", code=1)
    assert said.count("No such file") == 2


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)],
)
@pytest.mark.parametrize("harm", ["cut", "changed"])
def test_an_archive_that_is_cut_or_changed_is_named(state, tmp_path, suffix, compress, harm):
    run("state", "backup", tmp_path / "b.tar", "--state-dir", state)
    data = bytearray(compress((tmp_path / "b.tar").read_bytes()))
    if harm == "cut":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2 : len(data) // 2 + 600] = b"\xa5" * 600
    broken = tmp_path / f"broken.tar{suffix}"
    broken.write_bytes(data)
    said = run("state", "restore", broken, "--state-dir", tmp_path / "new", code=1)
    assert str(broken) in said
    assert said.startswith("Error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "new" / "state.sqlite3").exists()


def test_a_compressed_backup_comes_back(state, tmp_path):
    run("state", "backup", tmp_path / "b.tar", "--state-dir", state)
    with tarfile.open(tmp_path / "b.tar") as plain, tarfile.open(tmp_path / "b.tgz", "w:gz") as packed:
        for member in plain:
            packed.addfile(member, plain.extractfile(member))
    assert "sound" in run("state", "restore", tmp_path / "b.tgz", "--state-dir", tmp_path / "new")
