"""How weights would treat captured answers, and how far a step would move the policy. Nothing is changed."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sona_stream.lora import Capture, Evaluation, LoraWeights, LowRank

from .adapters import Factors, stack_factors
from .gradient import Scratch, apply_policy
from .logits import BaseLogits, Batch

F32 = NDArray[np.float32]

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
    before, change = stack_factors(old), _change(old, new)
    if change is None:
        return 0.0
    prepared = yield from source.prepare(batch, top_k)
    WB, Z = prepared.project(before.B), batch.hidden @ before.A.T
    WD, C = prepared.project(change.B), batch.hidden @ change.A.T
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


def _change(old: LoraWeights, new: LoraWeights) -> Factors | None:
    """h'_new - h'_old as one pair; None when there is none."""
    parts = [*_differences(old.micro, new.micro), *_differences(old.base, new.base)]
    parts = [(A, B) for A, B in parts if A.any() and B.any()]
    if not parts:
        return None
    A, B = np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts], axis=1)
    return Factors(A=torch.from_numpy(A), B=torch.from_numpy(B))


def _differences(old: LowRank | None, new: LowRank | None) -> list[tuple[F32, F32]]:
    """B'A' - BA = B'(A' - A) + (B' - B)A: neighbouring numbers subtract without rounding, their products do not."""
    if old is None or new is None or old.scaling != new.scaling or old.lora_A.shape != new.lora_A.shape:
        signed = [(sign, pair) for sign, pair in ((-1, old), (1, new)) if pair is not None]
        return [(_f32(pair.lora_A), _f32(pair.lora_B * (sign * pair.scaling))) for sign, pair in signed]
    return [
        (_f32(new.lora_A - old.lora_A), _f32(new.lora_B * new.scaling)),
        (_f32(old.lora_A), _f32((new.lora_B - old.lora_B) * new.scaling)),
    ]


def _f32(values: F32) -> F32:
    return np.asarray(values, np.float32)


def unusable(captures: Sequence[Capture]) -> Evaluation:
    """The evaluation of weights that are not finite."""
    nan = [np.full(len(capture), np.nan, np.float32) for capture in captures]
    return Evaluation(np.nan, np.nan, nan, nan, np.nan, np.nan, finite=False)
