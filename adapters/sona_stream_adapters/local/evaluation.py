"""How weights would treat captured answers, and how far a step would move the policy. Nothing is changed."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch

from sona_stream.lora import Capture, Evaluation, LoraWeights

from .adapters import stack_factors
from .gradient import Scratch, apply_policy
from .logits import BaseLogits, Batch

__all__ = ["evaluate", "predicted_kl", "unusable"]


def evaluate(
    source: BaseLogits, batch: Batch, weights: LoraWeights, scratch: Scratch
) -> Generator[None, None, Evaluation]:
    """Over the whole vocabulary, in slices of at most 64 tokens."""
    factors = stack_factors(weights)
    prepared = yield from source.prepare(batch, None)
    WB, Z = prepared.project(factors.B), batch.hidden @ factors.A.T
    kl, logprobs, base_logprobs = (torch.empty(len(batch)) for _ in range(3))
    for segment, base in source.segments(prepared):
        at, inverse_t = slice(segment.start, segment.stop), batch.inverse_temperatures[segment.capture]
        policy = apply_policy(base, Z[at], WB, prepared.labels[at], inverse_t, scratch)
        kl[at], logprobs[at], base_logprobs[at] = policy.kl, policy.label_logprobs, policy.base_label_logprobs
        yield
    ratios = torch.linalg.vector_norm(Z @ factors.B.T, dim=1) / torch.linalg.vector_norm(batch.hidden, dim=1)
    return Evaluation(
        mean_kl_to_base=float(kl.double().mean()),
        max_kl_to_base=float(kl.max()),
        logprobs=batch.split(logprobs),
        base_logprobs=batch.split(base_logprobs),
        mean_delta_ratio=float(ratios.double().mean()),
        max_delta_ratio=float(ratios.max()),
        finite=bool(torch.isfinite(kl).all() and torch.isfinite(logprobs).all() and torch.isfinite(ratios).all()),
    )


def predicted_kl(
    source: BaseLogits, batch: Batch, old: LoraWeights, new: LoraWeights, top_k: int | None, scratch: Scratch
) -> Generator[None, None, float]:
    """Mean over tokens of 1/2 Var_p(W (h'_new - h'_old) / T), p at `old`: second order in the change, so exact as
    it goes to zero. The change of hidden states is low-rank, and so W times it.
    """
    before, after = stack_factors(old), stack_factors(new)
    prepared = yield from source.prepare(batch, top_k)
    WB, Z = prepared.project(before.B), batch.hidden @ before.A.T
    WD = torch.cat([prepared.project(after.B), -WB])
    C = torch.cat([batch.hidden @ after.A.T, Z], dim=1)
    total = 0.0
    for segment, base in source.segments(prepared):
        at, inverse_t = slice(segment.start, segment.stop), batch.inverse_temperatures[segment.capture]
        logits = torch.addmm(base, Z[at], WB, out=scratch.get("logits", base.shape))
        p = torch.softmax(logits.mul_(inverse_t), 1, out=scratch.get("p", base.shape))
        mean = (C[at] * (p @ WD.T)).sum(1, keepdim=True)
        shift = torch.addmm((-mean).expand_as(p), C[at], WD, out=logits)
        total += float((shift.square_().mul_(p).sum(1).double() * (0.5 * inverse_t**2)).sum())
        yield
    return total / len(batch)


def unusable(captures: Sequence[Capture]) -> Evaluation:
    """The evaluation of weights that are not finite."""
    nan = [np.full(len(capture), np.nan, np.float32) for capture in captures]
    return Evaluation(np.nan, np.nan, nan, nan, np.nan, np.nan, finite=False)
