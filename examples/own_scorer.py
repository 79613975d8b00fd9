"""An own scorer through the entry-point door, judging answers while they stream by: python examples/own_scorer.py

A scorer begins a `Scoring` for each request: that sees every `Delta` and says in the end how good the answer was,
from 0 to 1, or None. Its package names it in the entry points of `sona_stream.scorers`.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from installed import installed

from sona_stream import plugins
from sona_stream.config.settings import ScoringSettings
from sona_stream.events import Delta, Event, Finish, Head, Piece, Request
from sona_stream.quality import create_combined
from sona_stream.stages import score

WANTED = 5


class BrevityScoring:
    """One answer, counted as it comes: the text itself is not kept."""

    def __init__(self) -> None:
        self._spaces = 0

    def push(self, delta: Delta) -> None:
        # Increments are cut anywhere: what is counted must not depend on the cuts.
        self._spaces += sum(piece.text.count(" ") for piece in delta.pieces)

    def finish(self, finish: Finish | None) -> float | None:
        """1 up to WANTED words, then falling; None for an answer that broke off."""
        return None if finish is None else min(1.0, WANTED / (self._spaces + 1))


class BrevityScorer:
    """Short answers are good ones. ``weight`` is its share in the combined quality."""

    name = "brevity"

    def __init__(self, settings: ScoringSettings) -> None:
        self.weight = settings.weights.get(self.name, 1.0)

    def begin(self, request: Request) -> BrevityScoring:
        return BrevityScoring()


@asynccontextmanager
async def model(request: Request) -> AsyncIterator[AsyncIterator[Event]]:
    async def answer() -> AsyncIterator[Event]:
        yield Head(model="parrot")
        for word in request.query.split(" "):
            yield Delta(pieces=(Piece(text=word + " "),))
        yield Finish(reason="stop")

    yield answer()


async def judge(texts: list[str]) -> None:
    scorers = [plugins.load("scorers", name)(ScoringSettings()) for name in plugins.available("scorers")]
    pipeline = score(create_combined(scorers).begin)(model)
    for text in texts:
        request = Request(id="1", endpoint="chat.completions", model="parrot", body=b"", query=text)
        async with pipeline(request) as events:
            finish = [event async for event in events][-1]
        parts = "  ".join(f"{name} {value:.2f}" for name, value in finish.score.parts.items())
        print(f"{finish.score.value:.2f} = {parts}   {text[:40]!r}")


def main() -> None:
    with installed("sona_stream.scorers", "brevity", "own_scorer:BrevityScorer") as package:
        sys.path.append(package)
        asyncio.run(judge(["Paris.", "The capital of France is, as most people know, Paris.", "so " * 60]))


if __name__ == "__main__":
    main()
