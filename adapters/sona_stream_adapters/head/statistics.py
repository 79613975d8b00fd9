"""Where a model's hidden states lie: what standardises them before they are compared."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from .batch import Batch

__all__ = ["Statistics", "statistics"]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Of N hidden states. Those of several batches add up: means weighted by `tokens`."""

    tokens: int
    mean: NDArray[np.float32]
    """(d,) E[h]"""
    mean_square: NDArray[np.float32]
    """(d,) E[h^2]"""

    @property
    def spread(self) -> NDArray[np.float32]:
        """(d,) standard deviation of each component."""
        variance = self.mean_square.astype(np.float64) - self.mean.astype(np.float64) ** 2
        return np.sqrt(np.maximum(variance, 0.0)).astype(np.float32)

    @property
    def rms(self) -> float:
        """Square root of the mean square over all components."""
        return float(np.sqrt(self.mean_square.mean(dtype=np.float64)))


def statistics(batch: Batch) -> Statistics:
    """Summed in double."""
    total = torch.zeros(2, batch.hidden.shape[1], dtype=torch.float64, device=batch.hidden.device)
    for segment in batch.segments:
        rows = batch.rows(segment).double()
        total += torch.stack([rows.sum(0), rows.square().sum(0)])
    mean, mean_square = (total / len(batch)).float().cpu().numpy()
    return Statistics(len(batch), mean, mean_square)
