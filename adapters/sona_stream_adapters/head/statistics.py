"""Where captured hidden states lie."""

from __future__ import annotations

import math

import torch

from sona_stream.lora import HiddenStatistics

from .batch import Batch

__all__ = ["statistics"]


def statistics(batch: Batch) -> HiddenStatistics:
    """Mean and root mean square, summed in double."""
    total = torch.zeros(batch.hidden.shape[1], dtype=torch.float64, device=batch.hidden.device)
    square = torch.zeros((), dtype=torch.float64, device=batch.hidden.device)
    for segment in batch.segments:
        rows = batch.rows(segment).double()
        total += rows.sum(0)
        square += rows.square().sum()
    mean = (total / len(batch)).float().cpu().numpy()
    return HiddenStatistics(len(batch), mean, math.sqrt(float(square) / batch.hidden.numel()))
