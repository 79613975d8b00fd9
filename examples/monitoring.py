"""The guide's "Key Metrics to Monitor" and the original's "Performance Monitoring", on real text embeddings.

    python examples/monitoring.py

Learning is due when the buffer is 80 % full. Nothing is lost when nobody looks: a full buffer gives up its oldest
trajectory and counts it.
"""

import time

from sona_stream.engine import SonaConfig, SonaEngine
from sona_stream_adapters.embedders.static import StaticEmbedder

SUBJECTS = ["the weather", "a recipe", "my invoice", "a bug in my code", "the train to Paris", "my password"]
FORMS = ["tell me about {}", "help me with {}", "I have a question about {}", "{}, please", "what about {}?"]


def main() -> None:
    """Serves queries, watches the numbers, learns when it is due."""
    embedder = StaticEmbedder()
    config = SonaConfig(hidden_dim=embedder.dim, embedding_dim=embedder.dim, trajectory_capacity=100)
    engine = SonaEngine.with_config(config)
    for number in range(250):
        query = embedder.embed_one(FORMS[number % 5].format(SUBJECTS[number % 6]))
        trajectory = engine.begin_trajectory(query)
        engine.add_trajectory_step(trajectory, engine.apply_micro_lora(query), [], 0.7)
        engine.end_trajectory(trajectory, 0.6 + 0.05 * (number % 6))

        buffered = engine.get_stats()["trajectories_buffered"]
        if buffered > config.trajectory_capacity * 0.8:
            began = time.perf_counter()
            said = engine.force_learn()
            print(f"request {number}: {buffered} buffered; {said} ({1e3 * (time.perf_counter() - began):.0f} ms)")

    for name, value in engine.get_stats().items():
        print(f"{name:>24}: {value}")

    engine.set_enabled(False)
    query = embedder.embed_one("the weather in Paris")
    print("disabled, the vector passes unchanged:", bool((engine.apply_micro_lora(query) == query).all()))


if __name__ == "__main__":
    main()
