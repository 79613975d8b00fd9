"""The bundled embedder: size, load time, latency, paraphrases, few-shot intent accuracy beside published figures.

    python benchmarks/embeddings.py [--data DIR] [--onnx] [--json OUT] [--check]

Few-shot: cosine to the mean of each label's few training rows, no other training. Published figures are on the full
test sets, ours on the development samples in DIR. ``--onnx`` measures the contextual embedder beside it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from report import Report, Row, add_arguments, finish

from sona_stream_adapters.embedders.static import StaticEmbedder
from sona_stream_adapters.embedders.wordpiece import VOCAB

ROOT = Path(__file__).parents[1]
PARAPHRASES = ROOT / "tests/embedders/data/paraphrases.tsv"
PUBLISHED: dict[tuple[str, int], dict[str, float | str | None]] = {
    ("banking77", 5): {"tfidf_svc": 63.0, "roberta_classifier": 74.0, "use_convert": 77.8, "icda": 84.0},
    ("banking77", 10): {"tfidf_svc": 74.8, "roberta_classifier": 84.3, "use_convert": 85.2, "icda": 89.8},
    ("clinc150", 5): {"tfidf_svc": 72.7, "roberta_classifier": 88.0, "use_convert": 90.5, "icda": 92.6},
    ("clinc150", 10): {"tfidf_svc": 81.3, "roberta_classifier": 91.6, "use_convert": 93.3, "icda": 94.8},
}

Embed = Callable[[Sequence[str]], NDArray[np.float32]]


def few_shot(rows: Sequence[dict[str, object]], embed: Embed, shots: int) -> tuple[float, int]:
    """(accuracy in per cent on the test rows, their number); labels without a shot count as missed."""
    known = [row for row in rows if row["label"] != "oos"]
    train = [row for row in known if shots in (row.get("shots") or ())]  # type: ignore[operator]
    test = [row for row in known if row["split"] == "test"]
    vectors, labels = embed([str(row["text"]) for row in train]), np.array([row["label"] for row in train])
    names = np.unique(labels)
    centres = np.stack([vectors[labels == name].mean(0) for name in names])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    guess = names[(embed([str(row["text"]) for row in test]) @ centres.T).argmax(1)]
    truth = np.array([row["label"] for row in test])
    return 100.0 * float(np.mean(guess == truth)), len(test)


def paraphrases(embed: Embed) -> dict[str, float]:
    """Mean cosines of paraphrases, near misses and strangers, and how often the paraphrase is the nearest."""
    triplets = [line.split("\t") for line in PARAPHRASES.read_text(encoding="utf-8").splitlines()]
    queries, same, near = (embed([row[i] for row in triplets]) for i in range(3))
    cosines = queries @ same.T
    nearest = (queries @ np.concatenate([same, near]).T).argmax(1)
    return {
        "paraphrase": float(np.diag(cosines).mean()),
        "near_miss": float((queries * near).sum(1).mean()),
        "stranger": float(cosines[~np.eye(len(triplets), dtype=bool)].mean()),
        "recall_at_1": float(np.mean(nearest == np.arange(len(triplets)))),
    }


def latencies(embed: Embed, count: int) -> list[float]:
    """Microseconds, each query on its own."""
    queries = ["How do I reset my password?", "write a poem about autumn", "What is the capital of France?"]
    embed(queries[:1])
    times = []
    for i in range(count):
        start = time.perf_counter()
        embed([queries[i % len(queries)]])
        times.append(1e6 * (time.perf_counter() - start))
    return times


def load_cpu_ms() -> list[float]:
    """CPU milliseconds to an embedder, in fresh processes; numpy, anyio and tokenizers are imported already."""
    code = (
        "import time, numpy, anyio.to_thread, tokenizers; t = time.process_time();"
        "from sona_stream_adapters.embedders.static import create_embedder; create_embedder({});"
        "print(1e3 * (time.process_time() - t))"
    )
    runs = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5)
    )
    return [float(run.stdout) for run in runs]


def describe(report: Report, name: str, embed: Embed, data: Path | None, count: int) -> None:
    """The rows of one embedder."""
    times = latencies(embed, count)
    goal = 200.0 if name == "static" else None
    spread = (min(times), float(np.quantile(times, 0.99)))
    report.add(Row(f"{name}.query_us", statistics.median(times), "us", spread, count, goal=goal))
    for kind, value in paraphrases(embed).items():
        report.add(Row(f"{name}.{kind}", value, "share" if kind == "recall_at_1" else "cosine", n=40))
    for source, shots in PUBLISHED if data else ():
        with gzip.open(data / source / f"{source}.jsonl.gz", "rt", encoding="utf-8") as file:
            accuracy, size = few_shot([json.loads(line) for line in file], embed, shots)
        report.add(Row(f"{name}.{source}_{shots}shot", accuracy, "%", n=size, compared=PUBLISHED[source, shots]))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with banking77 and clinc150")
    parser.add_argument("--onnx", action="store_true", help="the contextual embedder too (fetched when missing)")
    add_arguments(parser)
    args = parser.parse_args()
    report = Report("embeddings")
    size = sum(path.stat().st_size for path in VOCAB.parent.iterdir() if path.is_file())
    report.add(Row("static.size_mb", size / 1e6, "MB", goal=9.0))
    report.measured("static.load_cpu_ms", load_cpu_ms(), "ms", goal=100.0)
    describe(report, "static", StaticEmbedder().embed_many, args.data, 3000)
    if args.onnx:
        from sona_stream_adapters.embedders.onnx import create_embedder

        describe(report, "onnx", create_embedder({"threads": 1}).embed_many, args.data, 100)
    finish(report, args)


if __name__ == "__main__":
    main()
