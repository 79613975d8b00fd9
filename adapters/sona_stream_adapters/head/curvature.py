"""How sensitive the unadapted policy is to changes of its hidden states, measured on captured answers."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch

from sona_stream.lora import F32, Curvature, Spectrum

from .batch import Batch
from .logits import BaseLogits
from .policy import Scratch, apply_policy

__all__ = ["constant_row", "curvature"]

DIRECTIONS = 32
"""eigenpairs kept: the loud directions of a policy are few"""
INPUT_DIRECTIONS = 64
"""the same of the hidden states: twice as many as the largest base pair has rows"""

_RIDGE = 1e-2


def curvature(
    source: BaseLogits, batch: Batch, scratch: Scratch, elsewhere: F32 | None = None
) -> Generator[None, None, Curvature]:
    """In slices of at most `batch.chunk` tokens. The captured tokens are draws from the policy (or nearly), so the
    outer products of their own gradients g_t = d log p(y_t) / d h_t estimate its Fisher information. Those that
    memory decided are no draws from it and count for nothing.
    """
    prepared = yield from source.prepare(batch, None)
    gradients = torch.empty(len(batch), batch.hidden.shape[1], device=batch.hidden.device)
    nothing = torch.zeros(1, len(prepared.rows), device=batch.hidden.device)
    yield
    for segment, base in source.segments(prepared):
        Z = torch.zeros(len(segment), 1, device=batch.hidden.device)
        policy = apply_policy(prepared, segment, base, Z, nothing, scratch)
        E = prepared.subtract(policy.p, torch.ones_like(policy.kl), segment)
        if policy.slope is not None:
            E.mul_(policy.slope)
        scale = prepared.head.scale / batch.temperatures[segment.capture]
        gradients[segment.start : segment.stop] = prepared.head.shard.sum(prepared.rows.product(E)).mul_(-scale)
        yield
    hidden = torch.cat([batch.rows(segment) for segment in batch.segments]).double()
    yield
    constant = constant_row(hidden)
    yield
    contrast = None
    if elsewhere is not None:
        contrast = constant_row(hidden, torch.from_numpy(np.array(elsewhere)).to(hidden))
        yield
    rms = float(hidden.square().mean().sqrt())
    inputs = _spectrum(hidden, INPUT_DIRECTIONS)
    yield
    lengths = [len(capture) for capture in batch.captures]
    if batch.learned is None:
        scores = torch.stack([part.mean(0) for part in torch.split(gradients, lengths)])
        outputs = _spectrum(gradients.double())
        return Curvature(len(batch), rms, constant, outputs, _array(scores), inputs, contrast)
    gradients.mul_(batch.learned[:, None])
    counts = [max(1, int(part.sum())) for part in torch.split(batch.learned, lengths)]
    sums = [part.sum(0) / n for part, n in zip(torch.split(gradients, lengths), counts, strict=True)]
    own = gradients[batch.learned] if bool(batch.learned.any()) else gradients
    return Curvature(
        len(batch), rms, constant, _spectrum(own.double()), _array(torch.stack(sums)), inputs, contrast
    )


def constant_row(hidden: torch.Tensor, elsewhere: torch.Tensor | None = None) -> F32:
    """(d,) ridge regression of 1 on the states (n, d) and of 0 on those from `elsewhere` (m, d), which weigh as
    much together; scaled to 1 on the mean of `hidden`; solved on the shorter side.
    """
    d, mean = hidden.shape[1], hidden.mean(0)
    ridge = _RIDGE * hidden.square().sum() / d
    rows = hidden
    if elsewhere is not None:
        rows = torch.cat([hidden, elsewhere * (len(hidden) / len(elsewhere)) ** 0.5])
    if len(rows) < d:
        inner = torch.linalg.solve(rows @ rows.T + ridge * torch.eye(len(rows)).to(rows), rows @ mean)
        row = mean - rows.T @ inner
    else:
        row = torch.linalg.solve(rows.T @ rows + ridge * torch.eye(d).to(rows), mean)
    along = row @ mean
    scaled = row / along if float(along) > 0 else torch.zeros_like(row)
    return np.ascontiguousarray(scaled.float().cpu().numpy())


def _spectrum(rows: torch.Tensor, directions: int = DIRECTIONS) -> Spectrum:
    """Of E[x x^T], from the rows x (n, d)."""
    n, d = rows.shape
    _, sizes, vectors = torch.linalg.svd(rows, full_matrices=False)
    values = sizes.square() / n
    k = max(1, min(directions, int((values > 1e-12 * values[0]).sum())))
    rest = float(values[k:].sum()) / max(1, d - k)
    return Spectrum(_array(vectors[:k]), _array(values[:k].clamp_min(1e-12)), rest)


def _array(values: torch.Tensor) -> F32:
    return np.ascontiguousarray(values.float().cpu().numpy())
