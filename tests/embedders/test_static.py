from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.errors import ConfigError, StateError
from sona_stream_adapters.embedders.static import StaticEmbedder, create_embedder
from sona_stream_adapters.embedders.wordpiece import MAX_CHARS, VOCAB, clip, load_tokenizer, well_formed

DATA = VOCAB.parent
SHARED = create_embedder({})
any_text = st.text(st.characters(), max_size=200)  # lone surrogates too


@pytest.fixture(scope="module")
def embedder() -> StaticEmbedder:
    return SHARED


@pytest.fixture(scope="module")
def triplets() -> list[list[str]]:
    """(query, paraphrase, near miss) written by hand."""
    lines = (Path(__file__).parent / "data/paraphrases.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines]


def test_embedding_is_the_weighted_mean_of_the_tokens_rows(embedder: StaticEmbedder) -> None:
    from tokenizers import BertWordPieceTokenizer

    reference = BertWordPieceTokenizer(str(VOCAB), lowercase=True)
    table, scales = np.load(DATA / "table.npy"), np.load(DATA / "scales.npy")
    for text in (
        "How do I reset my password?",
        "Żółć, naïve CAFÉ!",
        "def f(x):\n\treturn x**2",
        "unbelievability 12345",
    ):
        total = [0.0] * 256
        for token in reference.encode(text, add_special_tokens=False).ids:
            for j in range(256):
                total[j] += float(scales[token]) * int(table[token, j])
        norm = math.sqrt(sum(value * value for value in total))
        np.testing.assert_allclose(embedder.embed_one(text), np.array(total) / norm, atol=2e-6)


@settings(max_examples=150, deadline=None)
@given(any_text)
def test_any_text_gives_a_unit_or_zero_row_and_always_the_same(text: str) -> None:
    first, again = SHARED.embed_one(text), SHARED.embed_one(text)
    assert first.shape == (256,)
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    norm = float(np.linalg.norm(first))
    assert norm == 0.0 or abs(norm - 1.0) < 1e-5


@settings(deadline=None)
@given(any_text)
def test_well_formed_text_can_be_encoded(text: str) -> None:
    well_formed(text).encode()


def test_nothing_said_is_a_zero_row(embedder: StaticEmbedder) -> None:
    assert not embedder.embed_many(["", "  \n", "\U0001f600", "\x00"]).any()


async def test_rows_do_not_depend_on_their_batch(embedder: StaticEmbedder) -> None:
    texts = ["a small query", "", "write a poem about rain", "x" * 50, "The quick brown fox " * 2000]
    rows = await embedder.embed(texts)
    assert rows.shape == (5, 256)
    for text, row in zip(texts, rows, strict=True):
        assert np.array_equal(row, embedder.embed_one(text))
    assert (await embedder.embed([])).shape == (0, 256)


def test_work_on_a_huge_text_is_bounded_and_reads_both_ends(embedder: StaticEmbedder) -> None:
    middle = "filler " * 200_000
    text = "summarise this report " + middle + " thank you"
    assert len(clip(text)) == MAX_CHARS + 1
    assert clip(text).startswith("summarise this report")
    assert clip(text).endswith("thank you")
    limit = "word " * (MAX_CHARS // 5)
    assert _seconds(embedder, text) < 5 * _seconds(embedder, limit)


def _seconds(embedder: StaticEmbedder, text: str) -> float:
    times = []
    for _ in range(20):
        start = time.perf_counter()
        embedder.embed_one(text)
        times.append(time.perf_counter() - start)
    return min(times)


def test_paraphrases_are_nearer_than_near_misses_and_strangers(
    embedder: StaticEmbedder, triplets: list[list[str]]
) -> None:
    queries, same, near = (embedder.embed_many([row[i] for row in triplets]) for i in range(3))
    cosines = queries @ same.T
    paraphrase = np.diag(cosines)
    strangers = cosines[~np.eye(len(triplets), dtype=bool)]
    assert paraphrase.mean() > 0.6
    assert strangers.mean() < 0.2
    assert np.mean(paraphrase > (queries * near).sum(1)) >= 0.9
    assert np.mean(cosines.argmax(1) == np.arange(len(triplets))) >= 0.9


def test_the_files_fit_into_nine_megabytes_and_hold_no_pickle() -> None:
    files = [path for path in DATA.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 9_000_000
    for path in files:
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)


def test_loading_needs_no_torch() -> None:
    code = (
        "import sys; from sona_stream_adapters.embedders.static import create_embedder; create_embedder({});"
        "print([m for m in ('torch', 'transformers', 'onnxruntime', 'httpx', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("table", "scales", "message"),
    [
        (np.zeros((3, 4), np.float32), np.ones(3, np.float32), "int8"),
        (np.zeros((3, 4), np.int8), np.ones(4, np.float32), r"\(3, 4\)"),
        (np.zeros((3, 4), np.int8), np.ones(3, np.float32), "30522"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    tmp_path: Path, table: np.ndarray, scales: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "table.npy", table)
    np.save(tmp_path / "scales.npy", scales)
    with pytest.raises(StateError, match=message):
        StaticEmbedder(tmp_path)


def test_a_missing_or_torn_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot be read"):
        StaticEmbedder(tmp_path)
    (tmp_path / "table.npy").write_bytes((DATA / "table.npy").read_bytes()[:1000])
    with pytest.raises(StateError, match="cannot be read"):
        StaticEmbedder(tmp_path)


@pytest.mark.parametrize("options", [{"paht": "x"}, {"path": 3}, {"path": ""}])
def test_wrong_options_are_named(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="embedder_options"):
        create_embedder(options)


def test_vocabulary_has_a_row_each() -> None:
    assert load_tokenizer().get_vocab_size() == len(np.load(DATA / "scales.npy")) == 30522
