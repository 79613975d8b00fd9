"""Keys and values of several requests at different positions, so that they decode in one forward pass.

Row i of every layer's buffer belongs to one request. Requests that end are replaced by the last row, so the
active rows stay contiguous and attention reads a view. Buffers grow in blocks; memory is zeroed once, so that
masked-out positions hold finite numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

__all__ = ["SlotCache"]

BLOCK = 64
"""positions by which a buffer grows"""


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped
    """One layer's buffers: keys and values, each (rows, kv_heads, positions, head_dim)."""

    is_sliding = False

    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        self.plan = plan

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys = key_states.new_zeros(self._shape(key_states))
        self.values = value_states.new_zeros(self._shape(value_states))
        self.is_initialized = True

    def _shape(self, states: torch.Tensor) -> tuple[int, int, int, int]:
        return (self.plan.row_capacity, states.shape[1], self.plan.length_capacity, states.shape[3])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (n, kv_heads, t, head_dim) where the plan says; return views of everything to attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        plan, n, t = self.plan, key_states.shape[0], key_states.shape[2]
        if plan.positions is None:
            self.keys[:n, :, plan.start : plan.start + t] = key_states
            self.values[:n, :, plan.start : plan.start + t] = value_states
        else:
            self.keys[plan.rows, :, plan.positions] = key_states[:, :, 0]
            self.values[plan.rows, :, plan.positions] = value_states[:, :, 0]
        return self.keys[:n, :, : plan.attend], self.values[:n, :, : plan.attend]

    def resize(self) -> None:
        if not self.is_initialized:
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(self._shape(old))
            rows, length = min(old.shape[0], new.shape[0]), min(old.shape[2], new.shape[2])
            new[:rows, :, :length] = old[:rows, :, :length]
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.plan.attend, 0

    def get_seq_length(self) -> int:
        return self.plan.attend

    def get_max_length(self) -> int:
        return -1


class _Plan:
    """Where the next forward pass writes, shared by all layers."""

    def __init__(self, row_capacity: int, length_capacity: int) -> None:
        self.row_capacity = row_capacity
        self.length_capacity = length_capacity
        self.start = 0
        self.rows: torch.Tensor | None = None
        self.positions: torch.Tensor | None = None
        self.attend = 0


class SlotCache(Cache):  # type: ignore[misc]  # transformers is untyped
    """A transformers `Cache` of `rows` requests, each with its own length."""

    def __init__(self, layers: int, *, rows: int = 1, length: int = BLOCK) -> None:
        self.plan = _Plan(rows, _blocks(length))
        super().__init__(layers=[_SlotLayer(self.plan) for _ in range(layers)])
        self.lengths: list[int] = []
        """positions filled, one an active row"""

    @property
    def rows(self) -> int:
        """Active rows."""
        return len(self.lengths)

    def plan_chunk(self, rows: int, tokens: int) -> torch.Tensor:
        """Announce `tokens` further positions for rows 0..rows-1, all equally long. Returns the additive mask
        (1, 1, tokens, attend).
        """
        if not self.lengths:
            self.lengths = [0] * rows
        start = self.lengths[0]
        end = start + tokens
        self._reserve(rows, end)
        self.plan.start, self.plan.positions, self.plan.attend = start, None, end
        self.lengths = [end] * rows
        allowed = torch.arange(end) <= torch.arange(start, end)[:, None]
        return _additive(allowed)[None, None]

    def plan_step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Announce one further position for every row. Returns positions (rows,) and the mask
        (rows, 1, 1, attend).
        """
        positions = torch.tensor(self.lengths)
        end = max(self.lengths) + 1
        self._reserve(self.rows, end)
        self.plan.rows, self.plan.positions, self.plan.attend = torch.arange(self.rows), positions, end
        self.lengths = [length + 1 for length in self.lengths]
        allowed = torch.arange(end) <= positions[:, None]
        return positions, _additive(allowed)[:, None, None]

    def adopt(self, other: SlotCache, row: int, length: int) -> int:
        """Copy the first `length` positions of another cache's row behind the active rows; returns the new row."""
        new = self.rows
        self._reserve(new + 1, length)
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if not mine.is_initialized:
                mine.lazy_initialization(theirs.keys, theirs.values)
            mine.keys[new, :, :length] = theirs.keys[row, :, :length]
            mine.values[new, :, :length] = theirs.values[row, :, :length]
        self.lengths.append(length)
        return new

    def drop(self, row: int) -> None:
        """End a row. The last active row takes its place."""
        last = self.rows - 1
        if row != last:
            length = self.lengths[last]
            for layer in self.layers:
                layer.keys[row, :, :length] = layer.keys[last, :, :length]
                layer.values[row, :, :length] = layer.values[last, :, :length]
            self.lengths[row] = length
        self.lengths.pop()
        if not self.lengths:
            self._release()

    def _reserve(self, rows: int, length: int) -> None:
        plan = self.plan
        if rows <= plan.row_capacity and length <= plan.length_capacity:
            return
        plan.row_capacity = max(rows, plan.row_capacity)
        plan.length_capacity = max(_blocks(length), plan.length_capacity)
        for layer in self.layers:
            layer.resize()

    def _release(self) -> None:
        """Give memory back when idle: one long answer must not be paid for forever."""
        if self.plan.length_capacity > 4 * BLOCK:
            self.plan.length_capacity = BLOCK
            for layer in self.layers:
                layer.keys = layer.values = None
                layer.is_initialized = False


def _blocks(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _additive(allowed: torch.Tensor) -> torch.Tensor:
    return torch.zeros(allowed.shape).masked_fill_(~allowed, -torch.inf)
