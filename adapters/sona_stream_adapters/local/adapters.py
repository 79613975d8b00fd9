"""The table of served adapters: swapping an entry takes effect at the next token."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from sona_stream.errors import HostError, NotFound
from sona_stream.events import AdapterRef
from sona_stream.lora import LoraWeights, LowRank

__all__ = ["MAX_RANK", "AdapterTable", "Factors", "adapt", "check_weights", "stack_factors"]

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


def check_weights(weights: LoraWeights, hidden_dim: int, *, finite: bool = True) -> None:
    """Raises HostError naming the factor and the limit."""
    pairs = {"micro": weights.micro} | ({} if weights.base is None else {"base": weights.base})
    for name, pair in pairs.items():
        _check_pair(name, pair, hidden_dim)
        if finite and not (pair.is_finite() and np.isfinite(pair.scaling)):
            raise HostError(f"{name}: every entry and the scaling must be a finite number")


def _check_pair(name: str, pair: LowRank, hidden_dim: int) -> None:
    rank = pair.lora_A.shape[0]
    if pair.lora_A.ndim != 2 or pair.lora_A.shape[1] != hidden_dim:
        raise HostError(f"{name}.lora_A has shape {pair.lora_A.shape}, expected (rank, {hidden_dim})")
    if pair.lora_B.shape != (hidden_dim, rank):
        raise HostError(f"{name}.lora_B has shape {pair.lora_B.shape}, expected ({hidden_dim}, {rank})")
    if not 1 <= rank <= MAX_RANK:
        raise HostError(f"{name}: rank {rank} is outside 1..{MAX_RANK}")


def stack_factors(weights: LoraWeights, version: int = 0) -> Factors:
    """One pair from both, copied, so that a caller may go on changing its arrays."""
    pairs = [weights.micro] if weights.base is None else [weights.micro, weights.base]
    A = np.concatenate([pair.lora_A for pair in pairs], dtype=np.float32)
    B = np.concatenate([pair.lora_B * np.float32(pair.scaling) for pair in pairs], axis=1, dtype=np.float32)
    return Factors(A=torch.from_numpy(A), B=torch.from_numpy(B), version=version)


def adapt(hidden: torch.Tensor, factors: Sequence[Factors | None]) -> torch.Tensor:
    """(n, d) -> (n, d): row i through ``factors[i]``. Rows without one keep their exact bits; without any, the
    input itself is returned.
    """
    groups: dict[int, tuple[Factors, list[int]]] = {}
    for row, entry in enumerate(factors):
        if entry is not None:
            groups.setdefault(id(entry), (entry, []))[1].append(row)
    if not groups:
        return hidden
    out = hidden.clone()
    for entry, rows in groups.values():
        states = hidden[rows]
        out[rows] = states + (states @ entry.A.T) @ entry.B.T
    return out


class AdapterTable:
    """Key -> weights. Writers are on the event loop, the reader is the torch thread: each write is one
    assignment of a whole entry, so a reader sees the old one or the new one.
    """

    def __init__(self, hidden_dim: int) -> None:
        self._hidden_dim = hidden_dim
        self._entries: dict[str, Factors] = {}

    def put(self, key: str, version: int, weights: LoraWeights) -> None:
        """Raises HostError on a wrong shape, a rank out of bounds, or a value that is not finite."""
        check_weights(weights, self._hidden_dim)
        if version < 1:
            raise HostError(f"version {version} of adapter {key!r}: versions count from 1")
        self._entries[key] = stack_factors(weights, version)

    def drop(self, key: str) -> None:
        """Unknown keys are fine: dropping is idempotent."""
        self._entries.pop(key, None)

    def current(self, ref: AdapterRef | None) -> Factors | None:
        """What serves the next token; None is the base model (no adapter, or dropped meanwhile)."""
        return None if ref is None else self._entries.get(ref.key)

    def pinned(self, ref: AdapterRef) -> Factors:
        """Exactly this version, under its own key ``key@version`` or as the current one. Raises NotFound."""
        entry = self._entries.get(str(ref)) or self._entries.get(ref.key)
        if entry is None or entry.version != ref.version:
            raise NotFound(f"adapter {ref} is not on this host")
        return entry
