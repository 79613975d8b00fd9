"""The guide's "Continuous Learning Loop": batches of requests, feedback in trajectories, forced learning every N.

    python examples/continuous_loop.py

A documentation search ranks pages by embedding. Every topic has a reference and a beginner's page, and the search
prefers the reference; the readers here are beginners, which nobody told it. What a reader takes is the reward. The
gain is measured on topics that were never trained on, beside a control whose readers take either page by chance.
"""

import numpy as np

from sona_stream.engine import SonaConfig, SonaEngine
from sona_stream_adapters.embedders.static import StaticEmbedder

TOPICS = [
    "backups", "user accounts", "log files", "network proxies", "disk quotas", "certificates", "printers",
    "scheduled jobs", "mail forwarding", "database indexes", "virtual machines", "access tokens", "load balancers",
    "message queues", "search indexes", "container images",
]  # fmt: skip
QUESTIONS = ["how do I set up {}", "{} do not work", "{} settings", "change {}"]
KINDS = ["{}: reference of all options and error codes", "{}: a gentle introduction for beginners, step by step"]
TRAINED = 8
ROUNDS, BATCH, LEARN_EVERY = 20, 8, 5
Page = tuple[int, int]  # topic; 0 for the reference, 1 for the introduction


class Search:
    """Pages by cosine to the adapted query."""

    def __init__(self, embedder: StaticEmbedder) -> None:
        pages = embedder.embed_many([kind.format(topic) for topic in TOPICS for kind in KINDS])
        self.pages = pages - pages.mean(axis=0)
        self.engine = SonaEngine.with_config(
            SonaConfig(hidden_dim=embedder.dim, micro_lora_rank=2, micro_lora_lr=0.005, quality_threshold=0.0)
        )

    def ranking(self, query: np.ndarray) -> list[Page]:
        """All pages, best first."""
        scores = self.pages @ self.engine.apply_micro_lora(query)
        return [divmod(int(i), 2) for i in np.argsort(-scores)]

    def serve(self, query: np.ndarray, topic: int, taken: int) -> None:
        """One request: both pages of the topic are seen, one of them is taken."""
        ranking = self.ranking(query)
        trajectory = self.engine.begin_trajectory(query)
        for kind in (0, 1):
            self.engine.add_trajectory_step(trajectory, self.pages[2 * topic + kind], [], float(kind == taken))
        self.engine.end_trajectory(trajectory, 1.0 / (1 + ranking.index((topic, taken))))


def wins(search: Search, queries: np.ndarray, topics: list[int]) -> tuple[float, float]:
    """(share of queries whose topic's introduction stands above its reference, share with it among the first 2)"""
    rankings = [(search.ranking(query), topic) for query, topic in zip(queries, topics, strict=True)]
    above = [ranking.index((topic, 1)) < ranking.index((topic, 0)) for ranking, topic in rankings]
    return float(np.mean(above)), float(np.mean([(topic, 1) in ranking[:2] for ranking, topic in rankings]))


def main() -> None:
    """Learns over batches; prints what happens on the topics left out."""
    embedder = StaticEmbedder()
    ask = [(embedder.embed_one(q.format(TOPICS[t])), t) for t in range(len(TOPICS)) for q in QUESTIONS]
    train, test = ask[: TRAINED * len(QUESTIONS)], ask[TRAINED * len(QUESTIONS) :]
    queries, topics = np.stack([query for query, _ in test]), [topic for _, topic in test]
    searches = {"feedback": Search(embedder), "control": Search(embedder)}
    random = np.random.default_rng(0)
    for batch in range(ROUNDS + 1):
        shown = {name: wins(search, queries, topics) for name, search in searches.items()}
        told = [f"{name}: above {above:.2f}, top two {two:.2f}" for name, (above, two) in shown.items()]
        print(f"batch {batch:>2}", *told, sep="   ")
        for pick in random.integers(0, len(train), BATCH):
            query, topic = train[pick]
            searches["feedback"].serve(query, topic, 1)
            searches["control"].serve(query, topic, int(random.integers(2)))
        if batch % LEARN_EVERY == LEARN_EVERY - 1:
            searches["control"].engine.force_learn()
            print("  ", searches["feedback"].engine.force_learn())


if __name__ == "__main__":
    main()
