"""The in-process `HiddenStateHost`: checks what it is asked, then runs it as a job of the torch thread."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sona_stream.errors import HostError
from sona_stream.lora import (
    Capture,
    Curvature,
    Evaluation,
    HiddenSpace,
    LoraGradient,
    LoraWeights,
    LowRank,
    TokenSignal,
)
from sona_stream_adapters.episodes import EpisodeStore
from sona_stream_adapters.head import (
    BaseLogits,
    Batch,
    DenseHead,
    Scratch,
    check_captures,
    check_signal,
    check_top_k,
    check_weights,
    curvature,
    evaluate,
    gradient,
    penalty,
    predicted_kl,
)

from .adapters import AdapterTable
from .capture import CaptureRing
from .encode import encode, measure_space
from .layer_adapters import LayerAdapters
from .model import LanguageModel
from .scheduler import Scheduler

__all__ = ["LocalHost"]

T = TypeVar("T")


class LocalHost:
    """Adapters, captures and exact gradients of one loaded model. Methods may be called from any event loop."""

    def __init__(
        self,
        model: LanguageModel,
        scheduler: Scheduler,
        adapters: AdapterTable,
        captures: CaptureRing,
        episodes: EpisodeStore,
        *,
        logit_cache_bytes: int,
    ) -> None:
        self._model = model
        self._scheduler = scheduler
        self._adapters = adapters
        self._captures = captures
        self._episodes = episodes
        self._space: tuple[str, HiddenSpace] | None = None
        self._layers = LayerAdapters(model)
        head = DenseHead(model.lm_head, model.lm_bias, packed=model.packed_head)
        self._logits = BaseLogits(head, max_bytes=logit_cache_bytes)
        self._scratch = Scratch()

    @property
    def hidden_dim(self) -> int:
        """D of the final hidden state."""
        return self._model.hidden_dim

    @property
    def fingerprint(self) -> str:
        """Weights, config, tokenizer and lm_head; adapters at inner layers make it another model."""
        return self._model.fingerprint + self._layers.suffix

    async def put_adapter(self, key: str, version: int, weights: LoraWeights) -> None:
        """Serve from the next token on. Raises HostError naming the factor and the limit."""
        self._adapters.put(key, version, weights)

    async def drop_adapter(self, key: str) -> None:
        """Streams that use it go on with the base model from their next token."""
        self._adapters.drop(key)

    async def hidden_space(self) -> HiddenSpace:
        """Of the reference text's states. One prefill of it, the first time."""
        fingerprint = self.fingerprint
        if self._space is None or self._space[0] != fingerprint:
            job = measure_space(self._model, is_busy=lambda: self._scheduler.streaming)
            self._space = (fingerprint, await self._scheduler.run(job))
        return self._space[1]

    async def put_episode(
        self, key: str, hidden: NDArray[np.float32], token_ids: NDArray[np.int32], space: HiddenSpace
    ) -> None:
        """Raises HostError naming the field and the limit."""
        if not self._episodes.holds(key, token_ids, space):
            self._episodes.put(key, hidden, token_ids, space)

    def holds_episode(self, key: str) -> bool:
        """Whether it is at hand."""
        return key in self._episodes

    async def drop_episode(self, key: str) -> None:
        """Streams that draw on it go on without from their next token."""
        self._episodes.drop(key)

    async def put_layer_adapter(self, layer: int, weights: LowRank | None) -> None:
        """Research: h + delta(h) on the output of one decoder layer, for every request; None takes it away.

        `fingerprint` changes with it, and gradients of the final adapter are then those of the changed model.
        """
        await self._scheduler.run(self._layers.put(layer, weights))
        self._episodes.clear()  # states of another model

    async def capture(self, request_id: str) -> Capture:
        """Raises CaptureGone when the ring no longer holds it. Choice i > 0 is kept as ``request_id:i``."""
        return self._captures.get(request_id)

    async def release(self, request_id: str) -> None:
        """Forget; unknown ids are fine."""
        self._captures.forget(request_id)

    async def encode(
        self,
        prompt_ids: Sequence[int] | NDArray[np.int32],
        answer: str | Sequence[int] | NDArray[np.int32],
        *,
        request_id: str = "",
        temperature: float = 1.0,
        adapter_key: str | None = None,
        weights: LoraWeights | None = None,
        hidden: bool = False,
    ) -> Capture:
        """Teacher-forced capture of `answer` after `prompt_ids`, with its states in any case. Raises HostError on
        ids out of range and on more tokens than the model's context.
        """
        if not np.isfinite(temperature) or temperature < 0:
            raise HostError(f"temperature {temperature} must be a finite number >= 0")
        if weights is not None:
            check_weights(weights, self.hidden_dim)
        job = encode(
            self._model,
            [int(token) for token in prompt_ids],
            answer if isinstance(answer, str) else [int(token) for token in answer],
            request_id=request_id,
            fingerprint=self.fingerprint,
            temperature=temperature,
            adapter_key=adapter_key,
            weights=weights,
            is_busy=lambda: self._scheduler.streaming,
        )
        return await self._scheduler.run(job)

    async def gradient(self, captures: Sequence[Capture], signal: TokenSignal) -> LoraGradient:
        """See `TokenSignal` for the loss. Exact; with ``top_k`` exact for the kept rows of lm_head."""
        check_weights(signal.weights, self.hidden_dim)
        check_signal(captures, signal)
        return await self._run(captures, lambda batch: gradient(self._logits, batch, signal, self._scratch))

    async def predicted_kl(
        self, captures: Sequence[Capture], old: LoraWeights, new: LoraWeights, *, top_k: int | None = None
    ) -> float:
        """Mean over tokens of 1/2 Var_{p_old}(W (h'_new - h'_old) / T); `top_k` as in `TokenSignal`."""
        check_weights(old, self.hidden_dim)
        check_weights(new, self.hidden_dim)
        check_top_k(top_k)
        return await self._run(
            captures, lambda batch: predicted_kl(self._logits, batch, old, new, top_k, self._scratch)
        )

    async def penalty(
        self, captures: Sequence[Capture], reference: LoraWeights, current: LoraWeights, *, top_k: int | None = None
    ) -> LoraGradient:
        """How far `current` is from `reference` on these captures: see `RetainingHost`."""
        check_weights(reference, self.hidden_dim)
        check_weights(current, self.hidden_dim)
        check_top_k(top_k)
        return await self._run(
            captures, lambda batch: penalty(self._logits, batch, reference, current, top_k, self._scratch)
        )

    async def evaluate(self, captures: Sequence[Capture], weights: LoraWeights) -> Evaluation:
        """Over the whole vocabulary. Weights that are not finite are answered with ``finite=False``."""
        check_weights(weights, self.hidden_dim, finite=False)
        return await self._run(captures, lambda batch: evaluate(self._logits, batch, weights, self._scratch))

    async def curvature(self, captures: Sequence[Capture]) -> Curvature:
        """See `Curvature`: one product with lm_head and one with its transpose for these tokens."""
        return await self._run(captures, lambda batch: curvature(self._logits, batch, self._scratch))

    async def _run(self, captures: Sequence[Capture], begin: Callable[[Batch], Generator[None, None, T]]) -> T:
        self._check_captures(captures)

        def job() -> Generator[None, None, T]:
            return (yield from begin(Batch(captures)))

        return await self._scheduler.run(job())

    def _check_captures(self, captures: Sequence[Capture]) -> None:
        for capture in captures:
            if capture.fingerprint != self.fingerprint:
                raise HostError(
                    f"capture {capture.request_id!r} was made by another model: {capture.fingerprint}, "
                    f"not {self.fingerprint}"
                )
        check_captures(captures, self.hidden_dim)
