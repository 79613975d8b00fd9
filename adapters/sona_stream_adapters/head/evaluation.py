"""How weights would treat captured answers, and how far a step would move the policy. Nothing is changed."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sona_stream.lora import Evaluation, LoraWeights, LowRank

from .batch import Batch, Segment, TokenRows
from .factors import Factors, stack_factors
from .heads import Head
from .logits import BaseLogits
from .policy import Scratch, adapted, apply_policy, softmax
from .prepared import Prepared

F32 = NDArray[np.float32]
Treated = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""KL to base, log p(y), log p0(y), each (n,)"""

__all__ = ["evaluate", "predicted_kl", "unusable"]


def evaluate(
    source: BaseLogits, batch: Batch, weights: LoraWeights, scratch: Scratch
) -> Generator[None, None, Evaluation]:
    """Over the whole vocabulary, in slices of at most `batch.chunk` tokens."""
    if not weights.is_finite():
        return unusable(batch.captures)
    factors = stack_factors(weights).to(batch.hidden.device)
    seen = torch.empty(4, len(batch), device=batch.hidden.device)
    if source.head.whole is None:
        treated = _ask_model(source.head, batch, factors)
    else:
        prepared = yield from source.prepare(batch, None)
        treated = _apply(source, prepared, factors, scratch)
    for segment, (kl, logprobs, base_logprobs) in treated:
        at, hidden = slice(segment.start, segment.stop), batch.rows(segment)
        delta = (hidden @ factors.A.T) @ factors.B.T
        ratios = torch.linalg.vector_norm(delta, dim=1) / torch.linalg.vector_norm(hidden, dim=1)
        seen[:, at] = torch.stack([kl, ratios, logprobs, base_logprobs])
        yield
    (mean_kl, mean_ratio), (max_kl, max_ratio) = seen[:2].double().mean(1).tolist(), seen[:2].amax(1).tolist()
    return Evaluation(
        mean_kl_to_base=mean_kl,
        max_kl_to_base=max_kl,
        logprobs=batch.split(seen[2]),
        base_logprobs=batch.split(seen[3]),
        mean_delta_ratio=mean_ratio,
        max_delta_ratio=max_ratio,
        finite=bool(torch.isfinite(seen[:3]).all()),
    )


def _apply(
    source: BaseLogits, prepared: Prepared, factors: Factors, scratch: Scratch
) -> Iterator[tuple[Segment, Treated]]:
    WB = prepared.project(factors.B)
    for segment, base in source.segments(prepared):
        Z = prepared.batch.rows(segment) @ factors.A.T
        policy = apply_policy(prepared, segment, base, Z, WB, scratch)
        yield segment, (policy.kl, policy.label_logprobs, policy.base_label_logprobs)


def _ask_model(head: Head, batch: Batch, factors: Factors) -> Iterator[tuple[Segment, Treated]]:
    """Where no rows are at hand: the model's own logits of both hidden states."""
    for segment in batch.segments:
        hidden, labels = batch.rows(segment), batch.token_ids[segment.start : segment.stop, None]
        temperature = batch.temperatures[segment.capture]
        moved = hidden + (hidden @ factors.A.T) @ factors.B.T
        base, logp = (torch.log_softmax(head.logits(h) / temperature, 1) for h in (hidden, moved))
        kl = torch.linalg.vecdot(logp.exp(), logp - base).clamp_(min=0)
        yield segment, (kl, logp.gather(1, labels)[:, 0], base.gather(1, labels)[:, 0])


def predicted_kl(
    source: BaseLogits, batch: Batch, old: LoraWeights, new: LoraWeights, top_k: int | None, scratch: Scratch
) -> Generator[None, None, float]:
    """Mean over tokens of 1/2 Var_p(J W (h'_new - h'_old)), p and the slope J of the logits at `old`: second order
    in the change, so exact as it goes to zero. The change of hidden states is low-rank, and so W times it.
    """
    change = _change(old, new)
    if change is None:
        return 0.0
    head, device = source.head, batch.hidden.device
    before, change = stack_factors(old).to(device), change.to(device)
    prepared = yield from source.prepare(batch, top_k)
    WB, WD = prepared.project(before.B), prepared.project(change.B)
    total = torch.zeros((), dtype=torch.float64, device=device)
    yield
    for segment, base in source.segments(prepared):
        hidden, scale = batch.rows(segment), head.scale / batch.temperatures[segment.capture]
        logits, slope = adapted(base, hidden @ before.A.T, WB, head.soft_cap, scratch)
        variance = _variance(prepared, logits.mul_(scale), hidden @ change.A.T, WD, slope, scratch)
        total += variance.double().sum() * (0.5 * scale**2)
        yield
    return float(total) / len(batch)


def _variance(
    prepared: Prepared,
    logits: torch.Tensor,
    C: torch.Tensor,
    WD: torch.Tensor,
    slope: torch.Tensor | None,
    scratch: Scratch,
) -> torch.Tensor:
    """(n,) Var_p(slope * C WD), p the softmax of `logits` (n, v), which is overwritten."""
    shard, p = prepared.head.shard, scratch.get("p", logits)
    _, _, total = softmax(logits, p, shard)
    p.div_(total[:, None])
    if slope is None:
        mean = (C * shard.sum(p @ WD.T)).sum(1, keepdim=True)
        shift = torch.addmm((-mean).expand_as(p), C, WD, out=logits)
    else:
        shift = torch.mm(C, WD, out=logits).mul_(slope)
        mean = shard.sum(torch.mul(p, shift, out=slope).sum(1))
        shift.sub_(mean[:, None])
    return shard.sum(shift.square_().mul_(p).sum(1))


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


def unusable(captures: Sequence[TokenRows]) -> Evaluation:
    """The evaluation of weights that are not finite."""
    nan = [np.full(len(capture), np.nan, np.float32) for capture in captures]
    return Evaluation(np.nan, np.nan, nan, nan, np.nan, np.nan, finite=False)
