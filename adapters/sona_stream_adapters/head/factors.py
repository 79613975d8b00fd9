"""An adapter's factors as tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch

from sona_stream.errors import HostError
from sona_stream.lora import LoraWeights, LowRank

__all__ = ["MAX_RANK", "Factors", "check_weights", "stack_factors"]

MAX_RANK = 256
"""of one pair of factors"""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """Micro and base pair as one: delta(h) = (h @ A.T) @ B.T, the scalings multiplied into B."""

    A: torch.Tensor
    """(q, d) float32, q the sum of the ranks"""
    B: torch.Tensor
    """(d, q) float32"""
    version: int = 0
    layers: Mapping[int, Factors] = dataclasses.field(default_factory=dict)
    """of pairs inside the model"""

    def to(self, device: torch.device) -> Factors:
        """The same on `device`."""
        return Factors(self.A.to(device), self.B.to(device), self.version)


def check_weights(
    weights: LoraWeights, hidden_dim: int, *, finite: bool = True, max_rank: int = MAX_RANK, layers: int = 0
) -> None:
    """Raises HostError naming the factor and the limit. `layers`: of the model, where the host adapts them."""
    outside = [layer for layer in sorted(weights.layers) if not 0 <= layer < layers]
    if outside:
        raise HostError(
            f"layers: the adapter changes layer {outside[0]}, and "
            + (f"the model's are 0..{layers - 1}" if layers else "this host adapts the final hidden state alone")
        )
    pairs = {"micro": weights.micro} | ({} if weights.base is None else {"base": weights.base})
    pairs |= {f"layers[{layer}]": pair for layer, pair in weights.layers.items()}
    for name, pair in pairs.items():
        _check_pair(name, pair, hidden_dim, max_rank)
        if finite and not (pair.is_finite() and np.isfinite(pair.scaling)):
            raise HostError(f"{name}: every entry and the scaling must be a finite number")


def _check_pair(name: str, pair: LowRank, hidden_dim: int, max_rank: int) -> None:
    rank = pair.lora_A.shape[0]
    if pair.lora_A.ndim != 2 or pair.lora_A.shape[1] != hidden_dim:
        raise HostError(f"{name}.lora_A has shape {pair.lora_A.shape}, expected (rank, {hidden_dim})")
    if pair.lora_B.shape != (hidden_dim, rank):
        raise HostError(f"{name}.lora_B has shape {pair.lora_B.shape}, expected ({hidden_dim}, {rank})")
    if not 1 <= rank <= max_rank:
        raise HostError(f"{name}: rank {rank} is outside 1..{max_rank}")


def stack_factors(weights: LoraWeights, version: int = 0) -> Factors:
    """One pair from both, copied, so that a caller may go on changing its arrays."""
    pairs = [weights.micro] if weights.base is None else [weights.micro, weights.base]
    A = np.concatenate([pair.lora_A for pair in pairs], dtype=np.float32)
    B = np.concatenate([pair.lora_B * np.float32(pair.scaling) for pair in pairs], axis=1, dtype=np.float32)
    inside = {layer: stack_factors(LoraWeights(pair)) for layer, pair in weights.layers.items()}
    return Factors(A=torch.from_numpy(A), B=torch.from_numpy(B), version=version, layers=inside)
