"""Trains the pattern type classifier and judges it on queries from other sources.

    python benchmarks/pattern_types.py --data DIR [--json OUT] [--check] [--write]

Strength of the regularisation and share of the lexical features are chosen by leaving training *sources* out in
turn, never on the test set. ``--write`` stores the weights that the package ships.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pattern_type_sets import Labelled, read_test, training
from report import Report, Row, add_arguments, finish

from sona_stream.events import PATTERN_TYPES
from sona_stream.routing import TypeClassifier, load_classifier
from sona_stream.routing.features import lexical
from sona_stream_adapters.embedders.static import StaticEmbedder

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "sona_stream/routing/data/pattern_types.npz"
TEST = ROOT / "tests/routing/data/pattern_types.jsonl"
GOAL = 0.80
KEYWORDS = {  # the trivial baseline: first matching list wins
    "CodeGen": ("code", "function", "python", "java", "script", "def ", "sql", "error", "class "),
    "Creative": ("story", "poem", "write a", "imagine", "song", "invent", "compose"),
    "Reasoning": ("how many", "solve", "prove", "calculate", "probability", "if "),
    "General": ("summar", "translate", "rewrite", "extract", "classify", "plan", "how do i", "my card", "email"),
    "Conversational": ("hi", "hello", "thanks", "i'm", "you", "feel"),
    "Factual": ("what", "who", "when", "where", "which", "why", "how"),
}


def features(rows: Sequence[Labelled], embedder: StaticEmbedder) -> NDArray[np.float32]:
    """(n, dim + lexical)."""
    texts = [text for *_, text in rows]
    return np.hstack([embedder.embed_many(texts), np.stack([lexical(text) for text in texts])])


def labels(rows: Sequence[Labelled]) -> NDArray[np.int64]:
    """(n,) indices into PATTERN_TYPES."""
    return np.array([PATTERN_TYPES.index(kind) for kind, *_ in rows])


def sample_weights(rows: Sequence[Labelled]) -> NDArray[np.float64]:
    """(n,): types weigh the same; within a type a source weighs by the square root of its size."""
    sizes = Counter((kind, source) for kind, source, _ in rows)
    share = np.array([sizes[kind, source] ** -0.5 for kind, source, _ in rows])
    index = labels(rows)
    totals = np.bincount(index, share, minlength=len(PATTERN_TYPES))
    return share / totals[index] / len(PATTERN_TYPES)


def fit(
    X: NDArray[np.float32], y: NDArray[np.int64], w: NDArray[np.float64], scale: NDArray[np.float32], decay: float,
    steps: int = 300,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:  # fmt: skip
    """Softmax regression, L2 on the weights of the scaled features; full-batch Adam, deterministic."""
    X = X * scale
    target = np.eye(len(PATTERN_TYPES), dtype=np.float32)[y]
    w = w.astype(np.float32)[:, None]
    theta = np.zeros((X.shape[1] + 1, len(PATTERN_TYPES)), np.float32)
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for step in range(1, steps + 1):
        logits = X @ theta[:-1] + theta[-1]
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        error = (p - target) * w
        grad = np.vstack([X.T @ error + decay * theta[:-1], error.sum(0, keepdims=True)])
        m, v = 0.9 * m + 0.1 * grad, 0.99 * v + 0.01 * grad * grad
        rate = 0.2 * (1 - step / (steps + 1))
        theta -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-7)
    return theta[:-1] * scale[:, None], theta[-1]


def macro(y: NDArray[np.int64], guess: NDArray[np.int64]) -> float:
    """Mean recall over the types that occur."""
    return float(np.mean([np.mean(guess[y == kind] == kind) for kind in np.unique(y)]))


def held_out(rows: Sequence[Labelled], X: NDArray[np.float32], scale: NDArray[np.float32], decay: float) -> float:
    """Macro accuracy on training sources left out in turn (those of at least 60 queries)."""
    y, sources = labels(rows), np.array([source for _, source, _ in rows])
    right: dict[int, list[float]] = {}
    for source, size in Counter(sources.tolist()).items():
        if size < 60:
            continue
        out = sources == source
        kept = [row for row, gone in zip(rows, out, strict=True) if not gone]
        weights, bias = fit(X[~out], y[~out], sample_weights(kept), scale, decay, steps=80)
        guess = (X[out] @ weights + bias).argmax(1)
        right.setdefault(int(y[out][0]), []).append(float(np.mean(guess == y[out])))
    return float(np.mean([np.mean(values) for values in right.values()]))


def confusion(y: NDArray[np.int64], guess: NDArray[np.int64]) -> str:
    """Rows: true type; columns: guessed."""
    short = [kind[:7] for kind in PATTERN_TYPES]
    lines = [f"{'':<15}" + "".join(f"{name:>9}" for name in short) + "   recall"]
    for row, kind in enumerate(PATTERN_TYPES):
        counts = np.bincount(guess[y == row], minlength=len(PATTERN_TYPES))
        recall = counts[row] / max(counts.sum(), 1)
        lines.append(f"{kind:<15}" + "".join(f"{count:>9}" for count in counts) + f"   {recall:.3f}")
    return "\n".join(lines)


def keyword_guess(text: str) -> int:
    """The keyword baseline."""
    lowered = text.lower()
    for kind, words in KEYWORDS.items():
        if any(word in lowered for word in words):
            return PATTERN_TYPES.index(kind)  # type: ignore[arg-type]
    return PATTERN_TYPES.index("General")


def bootstrap(y: NDArray[np.int64], guess: NDArray[np.int64], rounds: int = 1000) -> tuple[float, float]:
    """95 % interval of the macro accuracy."""
    rng = np.random.default_rng(0)
    values = [macro(y[i], guess[i]) for i in (rng.integers(0, len(y), len(y)) for _ in range(rounds))]
    return float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))


def train(data: Path, test: Sequence[Labelled], embedder: StaticEmbedder) -> TypeClassifier:
    """Chooses lexical share and decay on left-out sources, then fits on all training rows."""
    known = {text.strip().lower() for *_, text in test}
    rows = [row for row in training(data) if row[2].strip().lower() not in known]
    X, y = features(rows, embedder), labels(rows)
    best: tuple[float, NDArray[np.float32], float] | None = None
    for share in (0.0, 0.3, 0.5):
        scale = np.ones(X.shape[1], np.float32)
        scale[: embedder.dim], scale[embedder.dim :] = 4.0, 4.0 * share
        for decay in (1e-2, 3e-2):
            value = held_out(rows, X, scale, decay)
            print(f"left-out sources: lexical share {share}, decay {decay}: {value:.3f}", flush=True)
            if best is None or value > best[0]:
                best = (value, scale, decay)
    assert best is not None
    weights, bias = fit(X, y, sample_weights(rows), best[1], best[2])
    print(f"trained on {len(rows)} queries of {len({source for _, source, _ in rows})} sources")
    return TypeClassifier(weights, bias, embedder=embedder.name, dim=embedder.dim)


def write(classifier: TypeClassifier, path: Path) -> None:
    """The file that `load_classifier` reads; half precision is enough."""
    weights, bias = classifier.parameters()
    about = {"types": list(PATTERN_TYPES), "embedder": classifier.embedder, "dim": classifier.dim}
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, weights=weights.astype(np.float16), bias=bias, about=np.array(json.dumps(about)))


def judge(classifier: TypeClassifier, test: Sequence[Labelled], embedder: StaticEmbedder, report: Report) -> None:
    """Adds the rows and prints the confusion matrix."""
    y = labels(test)
    vectors = embedder.embed_many([text for *_, text in test])
    start = time.process_time()  # CPU time: other processes shall not count
    votes = [classifier.classify(text, vector) for (*_, text), vector in zip(test, vectors, strict=True)]
    seconds = time.process_time() - start
    guess = np.array([PATTERN_TYPES.index(vote.type) for vote in votes])
    print(confusion(y, guess))
    baselines: dict[str, float | str | None] = {
        "always_one_type": 1 / len(PATTERN_TYPES),
        "keywords": macro(y, np.array([keyword_guess(text) for *_, text in test])),
    }
    report.add(
        Row("type_macro_accuracy", macro(y, guess), "share", bootstrap(y, guess), len(y), baselines, GOAL, ">=")
    )
    hand = np.array([source == "handwritten" for _, source, _ in test])
    report.add(Row("type_macro_accuracy_handwritten", macro(y[hand], guess[hand]), "share", n=int(hand.sum())))
    report.add(Row("type_macro_accuracy_third_party", macro(y[~hand], guess[~hand]), "share", n=int((~hand).sum())))
    for source in sorted({source for _, source, _ in test}):
        mine = np.array([other == source for _, other, _ in test])
        report.add(
            Row(f"type_accuracy.{source}", float(np.mean(y[mine] == guess[mine])), "share", n=int(mine.sum()))
        )
    report.add(Row("type_classify_cpu_us", 1e6 * seconds / len(test), "us", n=len(test), goal=100.0))


def main() -> None:
    """Train (with ``--data``) or judge the shipped weights (without)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of the training sets; without: no training"
    )
    parser.add_argument("--write", action="store_true", help="store the trained weights in the package")
    add_arguments(parser)
    args = parser.parse_args()
    embedder, test = StaticEmbedder(), read_test(TEST)
    classifier = train(args.data, test, embedder) if args.data else load_classifier()
    if args.write:
        write(classifier, WEIGHTS)
        classifier = load_classifier()
    report = Report("pattern_types")
    judge(classifier, test, embedder, report)
    finish(report, args)


if __name__ == "__main__":
    main()
