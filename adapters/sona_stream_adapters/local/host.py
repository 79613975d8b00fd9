"""The in-process `HiddenStateHost`: checks what it is asked, then runs it as a job of the torch thread."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sona_stream.budgets import Budget
from sona_stream.errors import HostError
from sona_stream.lora import (
    F32,
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
from .layers import Births, layered_evaluation, layered_gradient, layered_kl, layered_logprobs
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
        births: Births | None = None,
    ) -> None:
        self._model = model
        self._scheduler = scheduler
        self._adapters = adapters
        self._captures = captures
        self._episodes = episodes
        self._space: tuple[str, HiddenSpace] | None = None
        self._births = births
        head = DenseHead(model.lm_head, model.lm_bias, packed=model.packed_head)
        self._logits = BaseLogits(head, max_bytes=logit_cache_bytes)
        self._scratch = Scratch()

    @property
    def hidden_dim(self) -> int:
        """D of the final hidden state."""
        return self._model.hidden_dim

    @property
    def fingerprint(self) -> str:
        """Weights, config, tokenizer and lm_head."""
        return self._model.fingerprint

    async def put_adapter(self, key: str, version: int, weights: LoraWeights) -> None:
        """Serve from the next token on. Raises HostError naming the factor and the limit."""
        self._adapters.put(key, version, weights)

    async def drop_adapter(self, key: str) -> None:
        """Streams that use it go on with the base model from their next token."""
        self._adapters.drop(key)

    def holds_adapter(self, key: str) -> bool:
        """Whether it is at hand; it counts as used."""
        return self._adapters.holds(key)

    def budgets(self) -> list[Budget]:
        """Adapters, episodes and captures of this model."""
        held = (
            ("adapters", "litellm_params.adapter_mb", self._adapters),
            ("episodes", self._episodes.limit, self._episodes),
            ("captures", "sona.learner.capture_mb", self._captures),
        )
        return [Budget(what, name, len(x), x.nbytes, x.max_bytes, x.evictions) for what, name, x in held]

    async def hidden_space(self) -> HiddenSpace:
        """Of the reference text's states. One prefill of it, the first time."""
        fingerprint = self.fingerprint
        if self._space is None or self._space[0] != fingerprint:
            job = measure_space(self._model, is_busy=self._is_busy)
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

    async def initial_layers(self, key: str) -> Mapping[int, LowRank]:
        """See `LayeredHost`; none without the setting `layers`. One prefill of a fixed text, the first time."""
        return {} if self._births is None else await self._scheduler.run(self._births.pairs(key))

    async def capture(self, request_id: str) -> Capture:
        """Raises CaptureGone when the ring no longer holds it. Choice i > 0 is kept as ``request_id:i``. The states
        of an answer drawn through adapted layers are computed when they are first asked for.
        """
        found = self._captures.get(request_id)
        if len(found) and not found.hidden.shape[0]:
            same = await self.encode(found.prompt_ids, found.token_ids)
            found = dataclasses.replace(found, hidden=same.hidden)
            self._captures.put(found)
        return found

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
            self._check(weights)
        inside = weights is not None and bool(weights.layers)
        job = encode(
            self._model,
            [int(token) for token in prompt_ids],
            answer if isinstance(answer, str) else [int(token) for token in answer],
            request_id=request_id,
            fingerprint=self.fingerprint,
            temperature=temperature,
            adapter_key=adapter_key,
            weights=None if inside else weights,
            is_busy=self._is_busy,
        )
        found = await self._scheduler.run(job)
        if weights is None or not inside:
            return found
        logprobs = await self._scheduler.run(layered_logprobs(self._model, found, weights, self._is_busy))
        return dataclasses.replace(found, logprobs=logprobs)

    async def gradient(self, captures: Sequence[Capture], signal: TokenSignal) -> LoraGradient:
        """See `TokenSignal` for the loss. Exact; with ``top_k`` exact for the kept rows of lm_head. With layers in
        the weights, by autograd through the model and over the whole vocabulary.
        """
        self._check(signal.weights)
        check_signal(captures, signal)
        if signal.weights.layers:
            return await self._read(captures, layered_gradient(self._model, captures, signal, self._is_busy))
        return await self._run(captures, lambda batch: gradient(self._logits, batch, signal, self._scratch))

    async def predicted_kl(
        self, captures: Sequence[Capture], old: LoraWeights, new: LoraWeights, *, top_k: int | None = None
    ) -> float:
        """Mean over tokens of 1/2 Var_{p_old}(W (h'_new - h'_old) / T); `top_k` as in `TokenSignal`."""
        self._check(old)
        self._check(new)
        check_top_k(top_k)
        if old.layers or new.layers:
            return await self._read(captures, layered_kl(self._model, captures, old, new, self._is_busy))
        return await self._run(
            captures, lambda batch: predicted_kl(self._logits, batch, old, new, top_k, self._scratch)
        )

    async def penalty(
        self, captures: Sequence[Capture], reference: LoraWeights, current: LoraWeights, *, top_k: int | None = None
    ) -> LoraGradient:
        """How far `current` is from `reference` on these captures: see `RetainingHost`. Layers are left out."""
        self._check(reference)
        self._check(current)
        check_top_k(top_k)
        return await self._run(
            captures, lambda batch: penalty(self._logits, batch, reference, current, top_k, self._scratch)
        )

    async def evaluate(self, captures: Sequence[Capture], weights: LoraWeights) -> Evaluation:
        """Over the whole vocabulary. Weights that are not finite are answered with ``finite=False``."""
        self._check(weights, finite=False)
        if weights.layers:
            return await self._read(captures, layered_evaluation(self._model, captures, weights, self._is_busy))
        return await self._run(captures, lambda batch: evaluate(self._logits, batch, weights, self._scratch))

    async def curvature(self, captures: Sequence[Capture], elsewhere: F32 | None = None) -> Curvature:
        """See `Curvature`: one product with lm_head and one with its transpose for these tokens."""
        return await self._run(captures, lambda batch: curvature(self._logits, batch, self._scratch, elsewhere))

    async def _run(self, captures: Sequence[Capture], begin: Callable[[Batch], Generator[None, None, T]]) -> T:
        self._check_captures(captures)

        def job() -> Generator[None, None, T]:
            return (yield from begin(Batch(captures)))

        return await self._scheduler.run(job())

    async def _read(self, captures: Sequence[Capture], job: Generator[None, None, T]) -> T:
        """A job that goes through the model itself."""
        self._check_captures(captures)
        for capture in captures:
            if not len(capture.prompt_ids):
                raise HostError(f"capture {capture.request_id!r}.prompt_ids: at least one token is needed")
        return await self._scheduler.run(job)

    def _is_busy(self) -> bool:
        return self._scheduler.streaming

    def _check(self, weights: LoraWeights, *, finite: bool = True) -> None:
        check_weights(weights, self.hidden_dim, finite=finite, layers=self._model.adapted_layers)

    def _check_captures(self, captures: Sequence[Capture]) -> None:
        for capture in captures:
            if capture.fingerprint != self.fingerprint:
                raise HostError(
                    f"capture {capture.request_id!r} was made by another model: {capture.fingerprint}, "
                    f"not {self.fingerprint}"
                )
        check_captures(captures, self.hidden_dim)
