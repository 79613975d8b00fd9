"""The original package's "Quick Start" in Python, on real text embeddings: python examples/quick_start.py"""

import numpy as np

from sona_stream.engine import SonaEngine
from sona_stream_adapters.embedders.static import StaticEmbedder


def main() -> None:
    """Record, learn, apply, find."""
    embedder = StaticEmbedder()
    question = embedder.embed_one("How do I cancel my order?")
    liked = embedder.embed_one("Open your orders, choose the order and press Cancel.")
    disliked = embedder.embed_one("Our company was founded in 1987 by two brothers.")

    # The guide's camelCase is taken as it is; SonaConfig has the same names in snake_case.
    engine = SonaEngine.with_config(
        {"hiddenDim": embedder.dim, "microLoraRank": 2, "baseLoraRank": 16, "qualityThreshold": 0.7}
    )

    attention = np.full(8, 1 / 8, np.float32)
    for _ in range(50):
        trajectory = engine.begin_trajectory(question)
        engine.add_trajectory_step(trajectory, liked, attention, 0.9)
        engine.add_trajectory_step(trajectory, disliked, attention, 0.2)
        engine.end_trajectory(trajectory, 0.85)  # quality in [0, 1]

    output = engine.apply_micro_lora(question)
    print(f"cosine to the liked answer    {question @ liked:+.3f} -> {cosine(output, liked):+.3f}")
    print(f"cosine to the disliked answer {question @ disliked:+.3f} -> {cosine(output, disliked):+.3f}")

    print(engine.force_learn())
    slow = engine.apply_base_lora(0, question)
    print(f"the base LoRA of layer 0 moved the question by {np.linalg.norm(slow - question):.4f}")

    for pattern in engine.find_patterns(question, 5):
        print(f"Pattern {pattern.id}: quality={pattern.avg_quality:.2f}, size={pattern.cluster_size}")


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """In [-1, 1]."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


if __name__ == "__main__":
    main()
