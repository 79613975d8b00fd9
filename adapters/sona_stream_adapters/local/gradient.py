"""The exact gradient of `TokenSignal`'s loss, without ever forming the gradient with respect to hidden states.

With E = dL/dlogits (T, v), Z = A h (T, q) and WB = W B (v, q):

    dL/dB = W^T (E^T Z)         cost v d q, once a call
    dL/dA = (E (W B))^T h       cost T v q

instead of the (T, v) x (v, d) product that the textbook order needs. Exact: only the order of products differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator

import numpy as np
import torch

from sona_stream.lora import LoraGradient, TokenSignal

from .adapters import stack_factors
from .logits import BaseLogits, Batch, Prepared, Segment

__all__ = ["Policy", "Scratch", "apply_policy", "gradient"]


class Scratch:
    """Two reusable (n, v) buffers: a fresh 12 MB allocation each time costs more than the arithmetic in it."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def get(self, name: str, shape: torch.Size) -> torch.Tensor:
        """An uninitialised float32 tensor of this shape, valid until the next request for the same name."""
        size = shape.numel()
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = torch.empty(size)
        return self._buffers[name][:size].view(shape)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """One segment's next-token distributions at the capture's temperature."""

    p: torch.Tensor
    """(n, v); scratch memory"""
    label_logprobs: torch.Tensor
    """(n,) log p(y)"""
    base_label_logprobs: torch.Tensor
    """(n,) log p0(y)"""
    mean_shift: torch.Tensor
    """(n,) E_p[delta], delta = log p - log p0 up to a constant a row"""
    kl: torch.Tensor
    """(n,) KL(p || p0) >= 0"""
    moments: torch.Tensor
    """(n, q) p @ (W B)"""


def apply_policy(
    base: torch.Tensor, Z: torch.Tensor, WB: torch.Tensor, labels: torch.Tensor, inverse_t: float, scratch: Scratch
) -> Policy:
    """`base` (n, v) logits without adapter, `Z` (n, q), `WB` (q, v), `labels` (n,) columns of the tokens."""
    logits = torch.addmm(base, Z, WB, out=scratch.get("logits", base.shape))
    p = scratch.get("p", base.shape)
    if inverse_t != 1.0:
        logits.mul_(inverse_t)
    top, log_sum, total = _softmax(logits, p)
    p.div_(total[:, None])
    index = labels[:, None]
    label = logits.gather(1, index)[:, 0] - top - log_sum
    moments = p @ WB.T
    mean_shift = inverse_t * (Z * moments).sum(1)
    # logits' buffer is free now: the base distribution needs one too.
    base_p = scratch.get("logits", base.shape)
    scaled = base if inverse_t == 1.0 else torch.mul(base, inverse_t, out=base_p)
    base_top, base_log_sum, _ = _softmax(scaled, base_p)
    base_label = base.gather(1, index)[:, 0] * inverse_t - base_top - base_log_sum
    # Differences of like quantities, so that a small KL is not lost in the rounding of large logits.
    kl = mean_shift - ((top - base_top) + (log_sum - base_log_sum))
    return Policy(p, label, base_label, mean_shift, kl.clamp_(min=0), moments)


def _softmax(scaled: torch.Tensor, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probabilities to `out` (which may be the input), up to `total`, the sum of each row: torch's softmax adds up
    50,000 terms plainly and is off by 1e-5, a sum over rows is not. Returns (max, log sum exp(x - max), total).
    """
    top = scaled.amax(1)
    torch.softmax(scaled, 1, out=out)
    total = out.sum(1)
    return top, (total / out.amax(1)).log_(), total


def gradient(
    source: BaseLogits, batch: Batch, signal: TokenSignal, scratch: Scratch
) -> Generator[None, None, LoraGradient]:
    """In slices of at most 64 tokens. With ``signal.top_k`` the softmax is renormalised over the kept rows: the
    gradient is exact for that smaller vocabulary.
    """
    prepared = yield from source.prepare(batch, signal.top_k)
    total = _Sums(prepared, signal, scratch)
    yield
    for segment, base in source.segments(prepared):
        total.add(segment, base)
        yield
    return total.result()


class _Sums:
    """Sums over tokens, in the order of products above."""

    def __init__(self, prepared: Prepared, signal: TokenSignal, scratch: Scratch) -> None:
        factors = stack_factors(signal.weights)
        self._prepared = prepared
        self._signal = signal
        self._scratch = scratch
        self._A = factors.A
        self._WB = prepared.project(factors.B)
        self._Z = prepared.batch.hidden @ factors.A.T
        self._advantages = torch.from_numpy(np.concatenate(signal.advantages, dtype=np.float32))
        self._EZ = torch.zeros_like(self._WB)
        """(q, v): E^T Z, transposed"""
        self._dA = torch.zeros_like(factors.A)
        self._loss = self._kl = self._logprob = 0.0
        rank = signal.weights.micro.lora_A.shape[0]
        self._fisher_A = torch.zeros(rank, factors.A.shape[1]) if signal.fisher else None
        self._fisher_B = torch.zeros(factors.A.shape[1], rank) if signal.fisher else None

    def add(self, segment: Segment, base: torch.Tensor) -> None:
        """Account for one segment's tokens; `base` (n, v) are its base logits."""
        batch, at = self._prepared.batch, slice(segment.start, segment.stop)
        inverse_t, Z, labels = batch.inverse_temperatures[segment.capture], self._Z[at], self._prepared.labels[at]
        policy = apply_policy(base, Z, self._WB, labels, inverse_t, self._scratch)
        factor = self._advantages[at] * self._ratio(policy.label_logprobs, batch.logprobs[at], self._advantages[at])
        self._loss += float(-(factor.double() @ policy.label_logprobs.double()))
        self._loss += self._signal.anchor * float(policy.kl.double().sum())
        self._kl += float(policy.kl.double().sum())
        self._logprob += float(policy.label_logprobs.double().sum())
        if self._fisher_A is not None:
            self._add_fisher(policy.p, labels, Z, batch.hidden[at], inverse_t)
        E = self._logit_gradient(policy, factor, Z, labels, inverse_t)
        self._EZ.addmm_((Z * inverse_t).T, E)
        self._dA.addmm_((E @ self._WB.T).T, batch.hidden[at], alpha=inverse_t)

    def _ratio(self, logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
        """PPO's factor on each token's gradient: the ratio, or 0 where the clipped branch is the smaller one."""
        if self._signal.ratio_clip is None:
            return torch.ones_like(logprobs)
        low, high = self._signal.ratio_clip
        ratio = (logprobs - old).exp()
        clipped = ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))
        return ratio.masked_fill_(clipped, 0.0)

    def _logit_gradient(
        self, policy: Policy, factor: torch.Tensor, Z: torch.Tensor, labels: torch.Tensor, inverse_t: float
    ) -> torch.Tensor:
        """E (n, v) = factor (p - onehot) + anchor p (delta - E_p delta), without the 1/T; overwrites p."""
        anchor = self._signal.anchor
        if anchor:
            offset = (factor - anchor * policy.mean_shift)[:, None].expand_as(policy.p)
            out = self._scratch.get("logits", policy.p.shape)
            E = torch.addmm(offset, Z, self._WB, alpha=anchor * inverse_t, out=out).mul_(policy.p)
        else:
            E = policy.p.mul_(factor[:, None])
        return E.scatter_add_(1, labels[:, None], -factor[:, None])

    def _add_fisher(
        self, p: torch.Tensor, labels: torch.Tensor, Z: torch.Tensor, hidden: torch.Tensor, inverse_t: float
    ) -> None:
        """Squares of each token's own gradient of log p(y): here the (n, d) gradient itself is needed."""
        assert self._fisher_A is not None
        assert self._fisher_B is not None
        micro = self._signal.weights.micro
        rank = self._fisher_A.shape[0]
        G = (p @ self._prepared.weight - self._prepared.weight[labels]).mul_(inverse_t)
        GB = G @ torch.from_numpy(np.asarray(micro.lora_B, np.float32)).mul(micro.scaling)
        self._fisher_A.addmm_(GB.square_().T, hidden.square())
        self._fisher_B.addmm_(G.square_().T, (Z[:, :rank] * micro.scaling).square_())

    def result(self) -> LoraGradient:
        """Undo the stacking: gradients with respect to each factor as the caller holds it."""
        weights, tokens = self._signal.weights, len(self._prepared.batch)
        dB = self._prepared.collect(self._EZ)
        rank = weights.micro.lora_A.shape[0]
        return LoraGradient(
            micro_A=_array(self._dA[:rank]),
            micro_B=_array(dB[:, :rank] * weights.micro.scaling),
            base_A=None if weights.base is None else _array(self._dA[rank:]),
            base_B=None if weights.base is None else _array(dB[:, rank:] * weights.base.scaling),
            tokens=tokens,
            loss=self._loss,
            mean_kl_to_base=self._kl / tokens,
            mean_logprob=self._logprob / tokens,
            fisher_A=None if self._fisher_A is None else _array(self._fisher_A),
            fisher_B=None if self._fisher_B is None else _array(self._fisher_B),
        )


def _array(values: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return values.contiguous().numpy()
