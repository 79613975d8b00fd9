"""The guide's "Pattern-Based Routing" on real query embeddings.

    python examples/pattern_routing.py ["a query" ...]

Past queries, each with the quality of its answer, become patterns; a new query goes to the specialist of the
nearest pattern's type, if that pattern has done well. The proxy does the same for the model `sona/auto`.
"""

import sys

import numpy as np

from sona_stream.engine import SonaConfig, SonaEngine
from sona_stream.routing import load_classifier
from sona_stream_adapters.embedders.static import StaticEmbedder

PAST = [  # (query, quality of the answer it got)
    ("Write a Python function that reverses a string", 0.95),
    ("Write a Python function to merge two sorted lists", 0.92),
    ("Implement binary search in JavaScript", 0.90),
    ("If a train travels 60 miles in 1.5 hours, what is its speed?", 0.88),
    ("A shop sells 3 apples for $2. How much do 12 apples cost?", 0.91),
    ("Write a short poem about the sea in winter", 0.90),
    ("Write a poem about the autumn moon", 0.93),
    ("What is the capital of Australia?", 0.97),
    ("What is the capital of Canada?", 0.96),
    ("Translate this legal contract clause into German", 0.35),
]
SPECIALISTS = {"CodeGen": "code-specialized-model", "Reasoning": "cot-model", "Creative": "creative-model"}
NEW = [
    "Write a Python function that sorts a list of strings",
    "A shop sells 5 pens for $4. How much do 20 pens cost?",
    "Write a poem about the moon and the sea",
    "What is the capital of New Zealand?",
    "Translate this contract clause into French",
    "qwertyuiop",
]


def learn(engine: SonaEngine, embedder: StaticEmbedder) -> None:
    """One trajectory a past query; the classifier's opinion is a vote for its pattern's type."""
    classifier = load_classifier()
    for query, quality in PAST:
        embedding = embedder.embed_one(query)
        trajectory = engine.begin_trajectory(embedding)
        vote = classifier.classify(query, embedding)
        context = {"pattern_type": vote.type, "pattern_type_weight": vote.probability}
        engine.add_trajectory_context(trajectory, context)
        engine.end_trajectory(trajectory, quality)


def route_query(engine: SonaEngine, embedding: np.ndarray) -> tuple[str, str]:
    """(model, why). The guide's rule, with a threshold on the similarity that the original cannot tell."""
    patterns = engine.find_patterns(embedding, 3, min_similarity=0.5)
    if not patterns:
        return "default-model", "no pattern is near"
    nearest = patterns[0]
    why = f"{nearest.pattern_type}, similarity {nearest.similarity:.2f}, quality {nearest.avg_quality:.2f}"
    if nearest.avg_quality > 0.8:
        return SPECIALISTS.get(nearest.pattern_type, "general-model"), why
    return "default-model", why


def main() -> None:
    """Learns from the past, then routes the new queries."""
    embedder = StaticEmbedder()
    engine = SonaEngine.with_config(SonaConfig(hidden_dim=embedder.dim, pattern_similarity=0.5))
    learn(engine, embedder)
    print(f"{len(PAST)} queries made {engine.get_stats()['patterns_stored']} patterns")
    for query in sys.argv[1:] or NEW:
        model, why = route_query(engine, embedder.embed_one(query))
        print(f"{query:<56} -> {model:<24} ({why})")


if __name__ == "__main__":
    main()
