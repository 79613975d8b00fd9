"""What a model offers whose hidden states are in reach: adapters, captures, gradients, remembered answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .lora import (
    Capture,
    Curvature,
    Evaluation,
    HiddenSpace,
    LoraGradient,
    LoraWeights,
    LowRank,
    TokenSignal,
)

__all__ = ["HiddenStateHost", "LayeredHost", "RetainingHost"]


class HiddenStateHost(Protocol):
    """A backend whose hidden states can be adapted. The host has lm_head; the learner never needs it.

    Calls may be long (a GEMM over the vocabulary): a host runs them off the event loop, never in the way of a
    decode step for longer than a bounded slice. Every call raises HostAway while the host does not answer.
    """

    @property
    def hidden_dim(self) -> int: ...
    @property
    def fingerprint(self) -> str:
        """Names weights, quantisation, tokenizer and lm_head: what an adapter or episode was made for."""
        ...

    async def put_adapter(self, key: str, version: int, weights: LoraWeights) -> None:
        """Serve `weights` under `key` from the next token on. Raises HostError on wrong shape or NaN."""
        ...

    async def drop_adapter(self, key: str) -> None: ...
    async def capture(self, request_id: str) -> Capture:
        """Raises CaptureGone when the ring no longer holds it."""
        ...

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
        """Teacher-forced capture of a given answer, from one prefill. Text gets the end token appended.

        ``logprobs`` are those of `weights` (None: the unadapted model). `hidden`: the states come with it, which
        a remote host may else keep; an episode is made of them.
        """
        ...

    async def gradient(self, captures: Sequence[Capture], signal: TokenSignal) -> LoraGradient: ...
    async def predicted_kl(self, captures: Sequence[Capture], old: LoraWeights, new: LoraWeights) -> float:
        """Mean over tokens of 1/2 Var_{p_old}(W (h'_new - h'_old) / T): the quadratic model of KL(old||new)."""
        ...

    async def evaluate(self, captures: Sequence[Capture], weights: LoraWeights) -> Evaluation: ...
    async def curvature(
        self, captures: Sequence[Capture], elsewhere: NDArray[np.float32] | None = None
    ) -> Curvature:
        """Of the unadapted policy on these captures, about 1,000 tokens of them. `elsewhere` (m, d): states of
        another text, which ``contrast`` sets these apart from.
        """
        ...

    async def hidden_space(self) -> HiddenSpace:
        """Of the unadapted model, from a fixed text: the same for the same fingerprint, to rounding."""
        ...

    async def put_episode(
        self, key: str, hidden: NDArray[np.float32], token_ids: NDArray[np.int32], space: HiddenSpace
    ) -> None:
        """Requests that name `key` draw on it from their next token on. `hidden` (T, d) of the unadapted pass,
        `token_ids` (T,) with the end token. A key names one answer for good: putting what is there costs nothing.
        Raises HostError naming the field and the limit.
        """
        ...

    def holds_episode(self, key: str) -> bool:
        """Whether requests may name `key` without another `put_episode`. Costs nothing."""
        ...

    async def drop_episode(self, key: str) -> None:
        """Unknown keys are fine."""
        ...

    async def release(self, request_id: str) -> None:
        """Forget the capture of this request."""
        ...


@runtime_checkable
class RetainingHost(Protocol):
    """What a `HiddenStateHost` may do besides: say what would be forgotten."""

    async def penalty(
        self,
        captures: Sequence[Capture],
        reference: LoraWeights,
        current: LoraWeights,
        *,
        top_k: int | None = None,
    ) -> LoraGradient:
        """sum_t 1/2 Var_{p*}(W (h'_current - h'_reference) / T), p* at `reference`, as ``loss``, and its gradient
        with respect to `current`; both means are 0. `top_k` as in `TokenSignal`.
        """
        ...


@runtime_checkable
class LayeredHost(Protocol):
    """What a `HiddenStateHost` may do besides, for research: adapt the outputs of layers inside the model, and
    learn those pairs through the model itself. Its other calls then take ``LoraWeights.layers``.
    """

    async def initial_layers(self, key: str) -> Mapping[int, LowRank]:
        """Pairs for an adapter at birth: they change nothing (B = 0). A h is as large as the root mean square of
        what its layer puts out, and its first row is constant. `key` seeds the other rows. Empty: none are wanted.
        """
        ...
