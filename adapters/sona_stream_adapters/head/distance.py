"""How far apart two adapters' policies are on captured answers, to second order; and what pulls them together.

    D(old, new) = sum_t 1/2 Var_{p_old}(J W (h'_new - h'_old) / T)

p_old and the slope J of the logits are those of `old`. It is the quadratic model of KL(old || new): exact as
the change goes to zero, and a quadratic form of the change everywhere. As a penalty on `new` with `old` held fixed
it is elastic weight consolidation in function space (after Kirkpatrick et al. 2017,
https://arxiv.org/abs/1612.00796): it does not care how a function is split into factors.

The change of hidden states is low-rank, and so is W times it: with E = dD/draw (T, v) the gradient is made as in
`gradient`, without forming the (T, d) gradient of hidden states.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from sona_stream.lora import LoraGradient, LoraWeights, LowRank

from .batch import Batch, Segment
from .factors import Factors, stack_factors
from .logits import BaseLogits
from .policy import Scratch, adapted, softmax
from .prepared import Prepared

F32 = NDArray[np.float32]

__all__ = ["penalty", "predicted_kl"]


def predicted_kl(
    source: BaseLogits, batch: Batch, old: LoraWeights, new: LoraWeights, top_k: int | None, scratch: Scratch
) -> Generator[None, None, float]:
    """D(old, new) a token."""
    change = _change(old, new)
    if change is None:
        return 0.0
    prepared = yield from source.prepare(batch, top_k)
    total = torch.zeros((), dtype=torch.float64, device=batch.hidden.device)
    between = _Between(prepared, old, change, scratch)
    yield
    for segment, E, shift, _ in between.segments(source):
        total += _half_variance(prepared, E, shift, segment)
        yield
    return float(total) / len(batch)


def penalty(
    source: BaseLogits,
    batch: Batch,
    reference: LoraWeights,
    current: LoraWeights,
    top_k: int | None,
    scratch: Scratch,
) -> Generator[None, None, LoraGradient]:
    """D(reference, current) as ``loss``, and its gradient with respect to the factors of `current`. The two means
    are 0: neither the base model nor labels are looked at.
    """
    factors, change = stack_factors(current).to(batch.hidden.device), _change(reference, current)
    dA, loss = torch.zeros_like(factors.A), torch.zeros((), dtype=torch.float64, device=batch.hidden.device)
    if change is None:
        return _gradient_of(current, dA, torch.zeros_like(factors.B), len(batch), 0.0)
    prepared = yield from source.prepare(batch, top_k)
    between, WB = _Between(prepared, reference, change, scratch), prepared.project(factors.B)
    EZ = torch.zeros_like(WB)
    yield
    for segment, E, shift, slope in between.segments(source):
        loss += _half_variance(prepared, E, shift, segment)
        hidden, scale = batch.rows(segment), _scale(prepared, segment)
        if slope is not None:
            E.mul_(slope)
        EZ.addmm_((hidden @ factors.A.T).T, E, alpha=scale**2)
        dA.addmm_((E @ WB.T).T, hidden, alpha=scale**2)
        yield
    shard = prepared.head.shard
    return _gradient_of(current, shard.sum(dA), shard.sum(prepared.rows.collect(EZ)).T, len(batch), float(loss))


class _Between:
    """What both walk through: the shift of the logits by `change`, less its mean under p at `old`."""

    def __init__(self, prepared: Prepared, old: LoraWeights, change: Factors, scratch: Scratch) -> None:
        device = prepared.batch.hidden.device
        self._prepared, self._scratch = prepared, scratch
        self._old, self._change = stack_factors(old).to(device), change.to(device)
        self._WB, self._WD = prepared.project(self._old.B), prepared.project(self._change.B)

    def segments(
        self, source: BaseLogits
    ) -> Iterator[tuple[Segment, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """(segment, E = p * shift, shift, slope), (n, v) scratch memory, without scale / T. Slope None: it is 1."""
        head, shard, scratch = self._prepared.head, self._prepared.head.shard, self._scratch
        for segment, base in source.segments(self._prepared):
            hidden = self._prepared.batch.rows(segment)
            logits, slope = adapted(base, hidden @ self._old.A.T, self._WB, head.soft_cap, scratch)
            p = scratch.get("p", base)
            _, _, total = softmax(logits.mul_(_scale(self._prepared, segment)), p, shard)
            p.div_(total[:, None])
            C = hidden @ self._change.A.T
            if slope is None:
                mean = (C * shard.sum(p @ self._WD.T)).sum(1, keepdim=True)
                shift = torch.addmm((-mean).expand_as(p), C, self._WD, out=logits)
            else:
                shift = torch.mm(C, self._WD, out=logits).mul_(slope)
                mean = shard.sum(torch.mul(p, shift, out=scratch.get("base", base)).sum(1))
                shift.sub_(mean[:, None])
            yield segment, p.mul_(shift), shift, slope


def _scale(prepared: Prepared, segment: Segment) -> float:
    return prepared.head.scale / prepared.batch.temperatures[segment.capture]


def _half_variance(prepared: Prepared, E: torch.Tensor, shift: torch.Tensor, segment: Segment) -> torch.Tensor:
    """() summed over the segment's tokens, in double: sum_v p shift^2 / 2. Overwrites `shift`."""
    rows = prepared.head.shard.sum(shift.mul_(E).sum(1))
    return rows.double().sum() * (0.5 * _scale(prepared, segment) ** 2)


def _gradient_of(
    weights: LoraWeights, dA: torch.Tensor, dB: torch.Tensor, tokens: int, loss: float
) -> LoraGradient:
    """Undo the stacking."""
    rank = weights.micro.lora_A.shape[0]
    micro, base = weights.micro, weights.base
    return LoraGradient(
        micro_A=_array(dA[:rank]),
        micro_B=_array(dB[:, :rank] * micro.scaling),
        base_A=None if base is None else _array(dA[rank:]),
        base_B=None if base is None else _array(dB[:, rank:] * base.scaling),
        tokens=tokens,
        loss=loss,
        mean_kl_to_base=0.0,
        mean_logprob=0.0,
    )


def _array(values: torch.Tensor) -> F32:
    return values.contiguous().cpu().numpy()


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
