"""One long host call at a time: what learns in the background takes turns with what learns at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio

from ...budgets import BoundedHost
from ...errors import HostError
from ...lora import (
    F32,
    I32,
    Capture,
    Curvature,
    Evaluation,
    HiddenSpace,
    LoraGradient,
    LoraWeights,
    LowRank,
    TokenSignal,
)
from ...protocols import HiddenStateHost, LayeredHost, RetainingHost

__all__ = ["TakingTurns"]


class TakingTurns:
    """A `HiddenStateHost` that lets only one GEMM-sized call at a time through to the real one, first come first
    served. Short calls pass.
    """

    def __init__(self, host: HiddenStateHost) -> None:
        self._host = host
        self._holder = host if isinstance(host, BoundedHost) else None
        self._turn = anyio.Lock(fast_acquire=True)

    @property
    def hidden_dim(self) -> int:
        """The host's."""
        return self._host.hidden_dim

    @property
    def fingerprint(self) -> str:
        """The host's."""
        return self._host.fingerprint

    async def put_adapter(self, key: str, version: int, weights: LoraWeights) -> None:
        """Passes."""
        await self._host.put_adapter(key, version, weights)

    @property
    def bounded(self) -> bool:
        """Whether the host is a `BoundedHost`."""
        return self._holder is not None

    def holds_adapter(self, key: str) -> bool:
        """The host's word; one that is not bounded holds what it was given."""
        return self._holder is None or self._holder.holds_adapter(key)

    async def drop_adapter(self, key: str) -> None:
        """Passes."""
        await self._host.drop_adapter(key)

    async def capture(self, request_id: str) -> Capture:
        """Passes."""
        return await self._host.capture(request_id)

    async def release(self, request_id: str) -> None:
        """Passes."""
        await self._host.release(request_id)

    async def encode(
        self,
        prompt_ids: Sequence[int] | I32,
        answer: str | Sequence[int] | I32,
        *,
        request_id: str = "",
        temperature: float = 1.0,
        adapter_key: str | None = None,
        weights: LoraWeights | None = None,
        hidden: bool = False,
    ) -> Capture:
        """In turn."""
        async with self._turn:
            return await self._host.encode(
                prompt_ids,
                answer,
                request_id=request_id,
                temperature=temperature,
                adapter_key=adapter_key,
                weights=weights,
                hidden=hidden,
            )

    async def gradient(self, captures: Sequence[Capture], signal: TokenSignal) -> LoraGradient:
        """In turn."""
        async with self._turn:
            return await self._host.gradient(captures, signal)

    @property
    def retains(self) -> bool:
        """Whether the host is a `RetainingHost`."""
        return isinstance(self._host, RetainingHost)

    async def penalty(
        self,
        captures: Sequence[Capture],
        reference: LoraWeights,
        current: LoraWeights,
        *,
        top_k: int | None = None,
    ) -> LoraGradient:
        """In turn. Raises HostError where the host cannot."""
        if not isinstance(self._host, RetainingHost):
            raise HostError("this host cannot say what would be forgotten")
        async with self._turn:
            return await self._host.penalty(captures, reference, current, top_k=top_k)

    async def initial_layers(self, key: str) -> Mapping[int, LowRank]:
        """In turn; none where the host is no `LayeredHost`."""
        if not isinstance(self._host, LayeredHost):
            return {}
        async with self._turn:
            return await self._host.initial_layers(key)

    async def predicted_kl(self, captures: Sequence[Capture], old: LoraWeights, new: LoraWeights) -> float:
        """In turn."""
        async with self._turn:
            return await self._host.predicted_kl(captures, old, new)

    async def curvature(self, captures: Sequence[Capture], elsewhere: F32 | None = None) -> Curvature:
        """In turn."""
        async with self._turn:
            return await self._host.curvature(captures, elsewhere)

    async def hidden_space(self) -> HiddenSpace:
        """Passes."""
        return await self._host.hidden_space()

    async def put_episode(self, key: str, hidden: F32, token_ids: I32, space: HiddenSpace) -> None:
        """Passes."""
        await self._host.put_episode(key, hidden, token_ids, space)

    def holds_episode(self, key: str) -> bool:
        """Passes."""
        return self._host.holds_episode(key)

    async def drop_episode(self, key: str) -> None:
        """Passes."""
        await self._host.drop_episode(key)

    async def evaluate(self, captures: Sequence[Capture], weights: LoraWeights) -> Evaluation:
        """In turn."""
        async with self._turn:
            return await self._host.evaluate(captures, weights)
