"""The learner's side of a `HiddenStateHost` without a model behind it: what the local host computes from captures,
computed where it is asked, on one thread.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeVar

from sona_stream.lora import F32, Capture, Curvature, Evaluation, LoraGradient, LoraWeights, TokenSignal
from sona_stream_adapters.head import (
    BaseLogits,
    Batch,
    DenseHead,
    Job,
    Scratch,
    curvature,
    evaluate,
    gradient,
    penalty,
    predicted_kl,
)

__all__ = ["HeadHost"]

T = TypeVar("T")
_CACHE_BYTES = 512 << 20  # of base logits: ten segments of a vocabulary of 50,000
_CHUNK = 256


class HeadHost:
    """The five calls of the learner over one head. Arms that ask about the same captures share its base logits."""

    def __init__(self, head: DenseHead, fingerprint: str, cache_bytes: int = _CACHE_BYTES) -> None:
        self.hidden_dim, self.fingerprint = head.hidden_dim, fingerprint
        self._source = BaseLogits(head, max_bytes=cache_bytes)
        self._scratch = Scratch()

    async def gradient(self, captures: Sequence[Capture], signal: TokenSignal) -> LoraGradient:
        """As `HiddenStateHost`."""
        return self._run(gradient(self._source, self._batch(captures), signal, self._scratch))

    async def predicted_kl(self, captures: Sequence[Capture], old: LoraWeights, new: LoraWeights) -> float:
        """As `HiddenStateHost`."""
        return self._run(predicted_kl(self._source, self._batch(captures), old, new, None, self._scratch))

    async def penalty(
        self, captures: Sequence[Capture], reference: LoraWeights, current: LoraWeights, *, top_k: int | None = None
    ) -> LoraGradient:
        """As `RetainingHost`."""
        batch = self._batch(captures)
        return self._run(penalty(self._source, batch, reference, current, top_k, self._scratch))

    async def evaluate(self, captures: Sequence[Capture], weights: LoraWeights) -> Evaluation:
        """As `HiddenStateHost`."""
        return self._run(evaluate(self._source, self._batch(captures), weights, self._scratch))

    async def curvature(self, captures: Sequence[Capture], elsewhere: F32 | None = None) -> Curvature:
        """As `HiddenStateHost`."""
        return self._run(curvature(self._source, self._batch(captures), self._scratch, elsewhere))

    @staticmethod
    def _batch(captures: Sequence[Capture]) -> Batch:
        keys = [f"{capture.request_id}/{len(capture)}".encode() for capture in captures]
        return Batch(captures, chunk=_CHUNK, keys=keys)

    @staticmethod
    def _run(generator: Generator[None, None, T]) -> T:
        return Job(generator).run()
