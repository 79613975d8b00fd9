"""How weights would treat captured answers. Nothing is changed."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sona_stream.lora import Evaluation, LoraWeights

from .batch import Batch, Segment, TokenRows
from .factors import Factors, stack_factors
from .heads import Head
from .logits import BaseLogits
from .policy import Scratch, apply_policy
from .prepared import Prepared
from .repetition import Repetition

F32 = NDArray[np.float32]
Treated = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""KL to base, log p(y), log p0(y), each (n,)"""

__all__ = ["evaluate", "evaluation_of", "unusable"]


def evaluate(
    source: BaseLogits, batch: Batch, weights: LoraWeights, scratch: Scratch
) -> Generator[None, None, Evaluation]:
    """Over the whole vocabulary, in slices of at most `batch.chunk` tokens."""
    if not weights.is_finite():
        return unusable(batch.captures)
    factors = stack_factors(weights).to(batch.hidden.device)
    seen = torch.empty(4, len(batch), device=batch.hidden.device)
    repetition = Repetition(batch, source.head.shard)
    if source.head.whole is None:
        treated = _ask_model(source.head, batch, factors, repetition)
    else:
        prepared = yield from source.prepare(batch, None)
        treated = _apply(source, prepared, factors, scratch, repetition)
    for segment, (kl, logprobs, base_logprobs) in treated:
        at, hidden = slice(segment.start, segment.stop), batch.rows(segment)
        delta = (hidden @ factors.A.T) @ factors.B.T
        ratios = torch.linalg.vector_norm(delta, dim=1) / torch.linalg.vector_norm(hidden, dim=1)
        seen[:, at] = torch.stack([kl, ratios, logprobs, base_logprobs])
        yield
    return evaluation_of(batch, seen, repetition)


def evaluation_of(batch: Batch, seen: torch.Tensor, repetition: Repetition) -> Evaluation:
    """`seen` (4, tokens): KL to the base model, |h' - h| / |h|, and both models' log-probability of each token."""
    (mean_kl, mean_ratio), (max_kl, max_ratio) = seen[:2].double().mean(1).tolist(), seen[:2].amax(1).tolist()
    collision, base_collision, repeat_mass, base_repeat_mass = repetition.result()
    return Evaluation(
        mean_kl_to_base=mean_kl,
        max_kl_to_base=max_kl,
        logprobs=batch.split(seen[2]),
        base_logprobs=batch.split(seen[3]),
        mean_delta_ratio=mean_ratio,
        max_delta_ratio=max_ratio,
        finite=bool(torch.isfinite(seen[:3]).all()),
        collision=collision,
        base_collision=base_collision,
        repeat_mass=repeat_mass,
        base_repeat_mass=base_repeat_mass,
    )


def _apply(
    source: BaseLogits, prepared: Prepared, factors: Factors, scratch: Scratch, repetition: Repetition
) -> Iterator[tuple[Segment, Treated]]:
    WB = prepared.project(factors.B)
    for segment, base in source.segments(prepared):
        Z = prepared.batch.rows(segment) @ factors.A.T
        policy = apply_policy(prepared, segment, base, Z, WB, scratch)
        repetition.take(segment, policy.p, policy.base_p, policy.base_total)
        yield segment, (policy.kl, policy.label_logprobs, policy.base_label_logprobs)


def _ask_model(
    head: Head, batch: Batch, factors: Factors, repetition: Repetition
) -> Iterator[tuple[Segment, Treated]]:
    """Where no rows are at hand: the model's own logits of both hidden states."""
    for segment in batch.segments:
        hidden, labels = batch.rows(segment), batch.token_ids[segment.start : segment.stop, None]
        temperature = batch.temperatures[segment.capture]
        moved = hidden + (hidden @ factors.A.T) @ factors.B.T
        base, logp = (torch.log_softmax(head.logits(h) / temperature, 1) for h in (hidden, moved))
        p, base_p = logp.exp(), base.exp()
        kl = torch.linalg.vecdot(p, logp - base).clamp_(min=0)
        repetition.take(segment, p, base_p, torch.ones_like(kl))
        yield segment, (kl, logp.gather(1, labels)[:, 0], base.gather(1, labels)[:, 0])


def unusable(captures: Sequence[TokenRows]) -> Evaluation:
    """The evaluation of weights that are not finite."""
    nan = [np.full(len(capture), np.nan, np.float32) for capture in captures]
    return Evaluation(np.nan, np.nan, nan, nan, np.nan, np.nan, finite=False)
