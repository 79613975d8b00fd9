"""Next-token distributions of one segment, with and without the adapter."""

from __future__ import annotations

import dataclasses

import torch

from .batch import Segment
from .prepared import Prepared
from .shard import Shard

__all__ = ["Policy", "Scratch", "adapted", "apply_policy", "softmax"]


class Scratch:
    """Reusable (n, v) buffers: a fresh 12 MB allocation each time costs more than the arithmetic in it."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def get(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """Uninitialised float32 of the same shape and device, valid until the next request for the name."""
        size, held = like.numel(), self._buffers.get(name)
        if held is None or held.numel() < size or held.device != like.device:
            held = self._buffers[name] = torch.empty(size, device=like.device)
        return held[:size].view(like.shape)

    def clear(self) -> None:
        """Give the memory back."""
        self._buffers.clear()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """At the capture's temperature. Arrays (n, v) are scratch memory."""

    p: torch.Tensor
    """(n, v)"""
    label_logprobs: torch.Tensor
    """(n,) log p(y)"""
    base_label_logprobs: torch.Tensor
    """(n,) log p0(y)"""
    mean_shift: torch.Tensor
    """(n,) E_p[delta], delta = log p - log p0 up to a constant a row"""
    kl: torch.Tensor
    """(n,) KL(p || p0) >= 0"""
    base_p: torch.Tensor
    """(n, v) without the adapter, up to `base_total`"""
    base_total: torch.Tensor
    """(n,) row sums of `base_p` over the whole vocabulary"""
    delta: torch.Tensor | None = None
    """(n, v) under a soft cap; without one it is factor * Z WB, which need not be formed"""
    slope: torch.Tensor | None = None
    """(n, v) f'(raw) under a soft cap; without one it is 1"""


def apply_policy(
    prepared: Prepared, segment: Segment, base: torch.Tensor, Z: torch.Tensor, WB: torch.Tensor, scratch: Scratch
) -> Policy:
    """`base` (n, v) raw logits without adapter, `Z` (n, q), `WB` (q, v)."""
    shard, cap = prepared.head.shard, prepared.head.soft_cap
    factor = prepared.head.scale / prepared.batch.temperatures[segment.capture]
    logits, slope = adapted(base, Z, WB, cap, scratch)
    if factor != 1.0:
        logits.mul_(factor)
    p = scratch.get("p", base)
    top, log_sum, total = softmax(logits, p, shard)
    p.div_(total[:, None])
    label = prepared.pick(logits, segment) - top - log_sum
    if cap is None:
        mean_shift = factor * (Z * shard.sum(p @ WB.T)).sum(1)
        base_p = scratch.get("logits", base)  # the adapted logits are used up
        scaled = base if factor == 1.0 else torch.mul(base, factor, out=base_p)
        delta = None
    else:
        base_p = scratch.get("base", base)
        scaled = torch.div(base, cap, out=base_p).tanh_().mul_(cap * factor)
        delta = logits.sub_(scaled)
    base_label = prepared.pick(scaled, segment)
    base_top, base_log_sum, base_total = softmax(scaled, base_p, shard)
    if delta is not None:
        mean_shift = shard.sum(torch.mul(p, delta, out=scratch.get("shift", base)).sum(1))
    # Differences of like quantities, so that a small KL is not lost in the rounding of large logits.
    kl = mean_shift - ((top - base_top) + (log_sum - base_log_sum))
    base_label = base_label - base_top - base_log_sum
    return Policy(p, label, base_label, mean_shift, kl.clamp_(min=0), base_p, base_total, delta, slope)


def adapted(
    base: torch.Tensor, Z: torch.Tensor, WB: torch.Tensor, cap: float | None, scratch: Scratch
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """f(base + Z WB) (n, v) before scale and temperature, and f' there (None: 1); scratch "logits" and "slope"."""
    logits = torch.addmm(base, Z, WB, out=scratch.get("logits", base))
    if cap is None:
        return logits, None
    tanh = logits.div_(cap).tanh_()
    slope = torch.mul(tanh, tanh, out=scratch.get("slope", base)).neg_().add_(1.0)
    return tanh.mul_(cap), slope


def softmax(
    scaled: torch.Tensor, out: torch.Tensor, shard: Shard
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probabilities to `out` (which may be the input), up to `total`, the sum of each row: torch's softmax adds up
    50,000 terms plainly and is off by 1e-5, a sum over rows is not. Returns (max, log sum exp(x - max), total).
    """
    top = shard.row_max(scaled)
    if shard.alone:
        torch.softmax(scaled, 1, out=out)
        total = out.sum(1)
        return top, (total / out.amax(1)).log_(), total
    torch.sub(scaled, top[:, None], out=out).exp_()
    total = shard.sum(out.sum(1))
    return top, total.log(), total
