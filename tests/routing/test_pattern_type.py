from __future__ import annotations

import json
import timeit
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.errors import StateError
from sona_stream.events import PATTERN_TYPES
from sona_stream.routing import TypeClassifier, load_classifier
from sona_stream.routing.features import DIM, lexical
from sona_stream_adapters.embedders.static import StaticEmbedder

STATIC = StaticEmbedder()
CLASSIFIER = load_classifier()
ROWS = [
    json.loads(line)
    for line in (Path(__file__).parent / "data/pattern_types.jsonl").read_text(encoding="utf-8").splitlines()
]


def test_the_test_set_is_broad_enough() -> None:
    for kind in PATTERN_TYPES:
        mine = [row for row in ROWS if row["type"] == kind]
        assert len(mine) >= 60
        assert len({row["source"] for row in mine}) >= 2
    assert max(Counter(row["text"] for row in ROWS).values()) == 1


def test_macro_accuracy_on_sources_never_trained_on() -> None:
    right = dict.fromkeys(PATTERN_TYPES, 0)
    for row in ROWS:
        vote = CLASSIFIER.classify(row["text"], STATIC.embed_one(row["text"]))
        right[row["type"]] += vote.type == row["type"]
    sizes = Counter(row["type"] for row in ROWS)
    recalls = {kind: right[kind] / sizes[kind] for kind in PATTERN_TYPES}
    assert sum(recalls.values()) / 6 >= 0.80, recalls
    assert min(recalls.values()) >= 0.6, recalls


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ("Write a Python function that sorts a list of dictionaries by key", "CodeGen"),
        ("If 3 apples cost 4 dollars, how much do 12 apples cost?", "Reasoning"),
        ("What is the capital of Australia?", "Factual"),
        ("Write a short story about a dragon who is afraid of fire", "Creative"),
        ("hi, how are you today?", "Conversational"),
        ("Translate this sentence into Italian: I am late.", "General"),
        ("", "General"),
        (" \n", "General"),
    ],
)
def test_plain_cases(query: str, kind: str) -> None:
    assert CLASSIFIER.classify(query, STATIC.embed_one(query)).type == kind


@settings(deadline=None)
@given(st.text(st.characters(), max_size=300))
def test_any_text_has_a_distribution(text: str) -> None:
    vote = CLASSIFIER.classify(text, STATIC.embed_one(text))
    assert vote == CLASSIFIER.classify(text, STATIC.embed_one(text))
    assert abs(sum(vote.probabilities.values()) - 1.0) < 1e-5
    assert vote.probability == max(vote.probabilities.values())
    assert tuple(vote.probabilities) == PATTERN_TYPES


@settings(deadline=None)
@given(st.text(st.characters(), max_size=3000))
def test_lexical_features_are_bounded_and_repeat(text: str) -> None:
    features = lexical(text)
    assert features.shape == (DIM,)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert np.abs(features[:14]).max() <= 1.5
    assert np.array_equal(features, lexical(text))


def test_work_on_a_huge_query_is_bounded() -> None:
    def seconds(text: str) -> float:
        return min(timeit.repeat(lambda: lexical(text), number=5, repeat=10))

    assert seconds("foo(bar) " * 500_000) < 10 * seconds("foo(bar) " * 133)


def test_wrong_dimension() -> None:
    with pytest.raises(ValueError, match=r"\(256,\), got \(3,\)"):
        CLASSIFIER.classify("x", np.zeros(3, np.float32))


def test_weights_survive_the_file(tmp_path: Path) -> None:
    weights, bias = CLASSIFIER.parameters()
    about = json.dumps({"types": list(PATTERN_TYPES), "embedder": CLASSIFIER.embedder, "dim": 256})
    path = tmp_path / "w.npz"
    np.savez(path, weights=weights, bias=bias, about=np.array(about))
    again = load_classifier(path)
    assert all(np.array_equal(a, b) for a, b in zip(again.parameters(), CLASSIFIER.parameters(), strict=True))
    assert again.embedder == StaticEmbedder.name


@pytest.mark.parametrize("fault", ["absent", "torn", "types", "shape", "nan"])
def test_weights_that_cannot_be_used(tmp_path: Path, fault: str) -> None:
    weights, bias = CLASSIFIER.parameters()
    types = list(PATTERN_TYPES)
    if fault == "types":
        types = types[::-1]
    if fault == "shape":
        weights = weights[:-1]
    if fault == "nan":
        weights[0, 0] = np.nan
    path = tmp_path / "w.npz"
    if fault != "absent":
        about = json.dumps({"types": types, "embedder": "e", "dim": 256})
        np.savez(path, weights=weights, bias=bias, about=np.array(about))
    if fault == "torn":
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(StateError, match="cannot be used"):
        load_classifier(path)


def test_parameters_are_checked() -> None:
    with pytest.raises(ValueError, match="finite"):
        TypeClassifier(np.full((256 + DIM, 6), np.inf, np.float32), np.zeros(6, np.float32), embedder="e", dim=256)
