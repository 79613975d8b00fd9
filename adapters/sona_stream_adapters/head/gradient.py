"""The exact gradient of `TokenSignal`'s loss, without ever forming the gradient with respect to hidden states.

With E = dL/draw (T, v), Z = A h (T, q) and WB = W B (v, q):

    dL/dB = W^T (E^T Z)         cost v d q, once a call
    dL/dA = (E (W B))^T h       cost T v q

instead of the (T, v) x (v, d) product that the textbook order needs. Exact: only the order of products differs.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch

from sona_stream.lora import LoraGradient, TokenSignal

from .batch import Batch, Segment
from .factors import stack_factors
from .logits import BaseLogits
from .policy import Policy, Scratch, apply_policy
from .prepared import Prepared

__all__ = ["gradient"]


def gradient(
    source: BaseLogits, batch: Batch, signal: TokenSignal, scratch: Scratch
) -> Generator[None, None, LoraGradient]:
    """In slices of at most `batch.chunk` tokens. Tokens that memory decided count for nothing in the
    loss. With ``signal.top_k`` the softmax is renormalised over the kept rows: the gradient is exact for that
    smaller vocabulary.
    """
    prepared = yield from source.prepare(batch, signal.top_k)
    total = _Sums(prepared, batch, signal, scratch)
    yield
    for segment, base in source.segments(prepared):
        total.add(segment, base)
        yield
    return total.result()


class _Sums:
    """Sums over tokens, in the order of products above."""

    def __init__(self, prepared: Prepared, batch: Batch, signal: TokenSignal, scratch: Scratch) -> None:
        self._prepared, self._batch, self._signal, self._scratch = prepared, batch, signal, scratch
        self._shard, device = prepared.head.shard, batch.hidden.device
        self._factors = stack_factors(signal.weights).to(device)
        self._WB = prepared.project(self._factors.B)
        self._advantages = torch.from_numpy(np.concatenate(signal.advantages, dtype=np.float32)).to(device)
        self._EZ = torch.zeros_like(self._WB)
        """(q, v): E^T Z, transposed"""
        self._dA = torch.zeros_like(self._factors.A)
        self._seen = torch.zeros(3, dtype=torch.float64, device=device)
        """loss, KL to base, log-probability; kept on the device, so that a slice waits for nothing"""
        rank, dim = signal.weights.micro.lora_A.shape
        self._fisher_A = torch.zeros(rank, dim, device=device) if signal.fisher else None
        self._fisher_B = torch.zeros(dim, rank, device=device) if signal.fisher else None

    def add(self, segment: Segment, base: torch.Tensor) -> None:
        """Account for one segment's tokens; `base` (n, v) are its raw base logits."""
        at, hidden = slice(segment.start, segment.stop), self._batch.rows(segment)
        scale = self._prepared.head.scale / self._batch.temperatures[segment.capture]
        Z = hidden @ self._factors.A.T
        policy = apply_policy(self._prepared, segment, base, Z, self._WB, self._scratch)
        factor = self._advantages[at] * self._ratio(policy.label_logprobs, at)
        kl, logprobs = policy.kl.double(), policy.label_logprobs.double()
        counted = None if self._batch.learned is None else self._batch.learned[at].float()
        if counted is not None:
            factor = factor * counted
        pulled = kl.sum() if counted is None else kl @ counted.double()
        loss = self._signal.anchor * pulled - factor.double() @ logprobs
        self._seen += torch.stack([loss, kl.sum(), logprobs.sum()])
        if self._fisher_A is not None:
            self._add_fisher(policy, segment, Z, hidden, scale, counted)
        E = self._raw_gradient(policy, factor, segment, Z, scale)
        if counted is not None and self._signal.anchor:
            E.mul_(counted[:, None])
        self._EZ.addmm_((Z * scale).T, E)
        self._dA.addmm_((E @ self._WB.T).T, hidden, alpha=scale)

    def _ratio(self, logprobs: torch.Tensor, at: slice) -> torch.Tensor:
        """PPO's factor on each token's gradient: the ratio, or 0 where the clipped branch is the smaller one."""
        if self._signal.ratio_clip is None:
            return torch.ones_like(logprobs)
        low, high = self._signal.ratio_clip
        ratio, advantages = (logprobs - self._batch.logprobs[at]).exp(), self._advantages[at]
        clipped = ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))
        return ratio.masked_fill_(clipped, 0.0)

    def _raw_gradient(
        self, policy: Policy, factor: torch.Tensor, segment: Segment, Z: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """E (n, v) = f'(raw) (factor (p - onehot) + anchor p (delta - E_p delta)), without scale / T; overwrites
        the policy's arrays.
        """
        anchor = self._signal.anchor
        if not anchor:
            E = policy.p.mul_(factor[:, None])
        else:
            offset = (factor - anchor * policy.mean_shift)[:, None]
            if policy.delta is None:
                out = self._scratch.get("logits", policy.p)
                E = torch.addmm(offset.expand_as(policy.p), Z, self._WB, alpha=anchor * scale, out=out)
            else:
                E = policy.delta.mul_(anchor).add_(offset)
            E.mul_(policy.p)
        E = self._prepared.subtract(E, factor, segment)
        return E if policy.slope is None else E.mul_(policy.slope)

    def _add_fisher(
        self,
        policy: Policy,
        segment: Segment,
        Z: torch.Tensor,
        hidden: torch.Tensor,
        scale: float,
        counted: torch.Tensor | None,
    ) -> None:
        """Squares of each token's own gradient of log p(y): here the (n, d) gradient itself is needed."""
        assert self._fisher_A is not None
        assert self._fisher_B is not None
        micro = self._signal.weights.micro
        rank = micro.lora_A.shape[0]
        E = self._scratch.get("base", policy.p).copy_(policy.p)
        self._prepared.subtract(E, torch.ones_like(policy.kl), segment)
        if policy.slope is not None:
            E.mul_(policy.slope)
        G = self._shard.sum(self._prepared.rows.product(E)).mul_(scale)
        if counted is not None:
            G.mul_(counted[:, None])
        self._fisher_A.addmm_((G @ self._factors.B[:, :rank]).square_().T, hidden.square())
        self._fisher_B.addmm_(G.square_().T, (Z[:, :rank] * micro.scaling).square_())

    def result(self) -> LoraGradient:
        """Undo the stacking: gradients with respect to each factor as the caller holds it."""
        weights, tokens = self._signal.weights, len(self._batch)
        dA = self._shard.sum(self._dA)
        dB = self._shard.sum(self._prepared.rows.collect(self._EZ)).T
        loss, kl, logprob = self._seen.tolist()
        rank = weights.micro.lora_A.shape[0]
        return LoraGradient(
            micro_A=_array(dA[:rank]),
            micro_B=_array(dB[:, :rank] * weights.micro.scaling),
            base_A=None if weights.base is None else _array(dA[rank:]),
            base_B=None if weights.base is None else _array(dB[:, rank:] * weights.base.scaling),
            tokens=tokens,
            loss=loss,
            mean_kl_to_base=kl / tokens,
            mean_logprob=logprob / tokens,
            fisher_A=None if self._fisher_A is None else _array(self._fisher_A),
            fisher_B=None if self._fisher_B is None else _array(self._fisher_B),
        )


def _array(values: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return values.contiguous().cpu().numpy()
