from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sona_stream.errors import ConfigError, ModelUnavailable, PluginError
from sona_stream_adapters.embedders.onnx import OnnxEmbedder, create_embedder


class Tensor:
    def __init__(self, name: str, width: int = 0) -> None:
        self.name, self.shape = name, ["n", "t", width]


class Session:
    """Stands in for a model: each token's hidden state depends on its id alone, so that pooling can be checked."""

    fed: list[dict[str, np.ndarray]]

    def __init__(self, path: str, options: object, providers: list[str]) -> None:
        if not Path(path).is_file():
            raise RuntimeError("no such file")
        self.fed = []

    def get_inputs(self) -> list[Tensor]:
        return [Tensor("input_ids"), Tensor("attention_mask")]

    def get_outputs(self) -> list[Tensor]:
        return [Tensor("last_hidden_state", 384)]

    def run(self, names: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.fed.append(feed)
        return [np.sin(feed["input_ids"][:, :, None] * np.arange(1, 385)).astype(np.float32)]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    stand_in = types.ModuleType("onnxruntime")
    stand_in.InferenceSession = Session  # type: ignore[attr-defined]
    stand_in.SessionOptions = types.SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", stand_in)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    return path


async def test_pooling_counts_each_texts_own_tokens(model: Path) -> None:
    embedder = OnnxEmbedder(model)
    texts = ["one two three four five six seven", "", "hello", "\ud800 \U0001f600"]
    rows = await embedder.embed(texts)
    assert rows.shape == (4, 384)
    assert not rows[1].any()
    for text, row in zip(texts, rows, strict=True):
        if not text:
            continue
        ids = [101, *embedder._tokens(text), 102]
        mean = np.mean([np.sin(i * np.arange(1, 385)) for i in ids], axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)


def test_long_texts_are_cut_in_the_middle(model: Path) -> None:
    embedder = OnnxEmbedder(model)
    embedder.embed_many(["start " + "word " * 100_000 + "end"])
    fed = embedder._session.fed[-1]["input_ids"]
    assert fed.shape == (1, 256)
    ends = load_ids("start"), load_ids("end")
    assert fed[0, 1] == ends[0][0]
    assert fed[0, -2] == ends[1][0]


def load_ids(word: str) -> list[int]:
    from sona_stream_adapters.embedders.wordpiece import load_tokenizer

    return load_tokenizer().encode(word, add_special_tokens=False).ids


def test_a_missing_model_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SONA_STREAM_CACHE", str(tmp_path))
    with pytest.raises(ModelUnavailable, match="allow the download"):
        create_embedder({"download": False})
    with pytest.raises(ModelUnavailable, match="there is no file"):
        create_embedder({"path": str(tmp_path / "absent.onnx")})


def test_without_onnxruntime_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PluginError, match=r"sona-stream\[memory\]"):
        OnnxEmbedder(tmp_path / "model.onnx")


def test_a_file_that_is_no_model(model: Path) -> None:
    with pytest.raises(ModelUnavailable, match="not an ONNX model"):
        OnnxEmbedder(model.with_name("other.onnx"))


@pytest.mark.parametrize("options", [{"threads": 0}, {"download": "yes"}, {"model": "x"}])
def test_wrong_options_are_named(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="embedder_options"):
        create_embedder(options)


@pytest.mark.model
def test_the_real_model_tells_near_misses_apart(encoder: Path) -> None:
    embedder = create_embedder({"path": str(encoder / "model.onnx")})
    capital, same, other = embedder.embed_many(
        ["What is the capital of France?", "Which city is France's capital?", "What is the capital of Italy?"]
    )
    assert capital @ same > 0.85 > 0.75 > capital @ other
