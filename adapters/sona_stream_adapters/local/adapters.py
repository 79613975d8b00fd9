"""The table of served adapters: swapping an entry takes effect at the next token."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sona_stream.errors import HostError, NotFound
from sona_stream.events import AdapterRef
from sona_stream.lora import LoraWeights
from sona_stream_adapters.head import Factors, check_weights, stack_factors

__all__ = ["AdapterTable", "adapt"]


def adapt(hidden: torch.Tensor, factors: Sequence[Factors | None]) -> torch.Tensor:
    """(n, ..., d) -> the same shape: row i through ``factors[i]``. Rows without one keep their exact bits; without
    any, the input itself is returned.
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

    def __init__(self, hidden_dim: int, *, layers: int = 0) -> None:
        """`layers`: of the model, where those are adapted, too."""
        self._hidden_dim, self._layers = hidden_dim, layers
        self._entries: dict[str, Factors] = {}

    def put(self, key: str, version: int, weights: LoraWeights) -> None:
        """Raises HostError on a wrong shape, a rank out of bounds, or a value that is not finite."""
        check_weights(weights, self._hidden_dim, layers=self._layers)
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
