"""Hidden states, ids and log-probabilities of sampled tokens, on the device, without ever waiting for it."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

__all__ = ["CaptureRing", "Rows"]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What the ring holds of some rows, copied out of it."""

    hidden: torch.Tensor
    """(n, d) in the model's dtype"""
    token_ids: torch.Tensor
    """(n,) int32"""
    logprobs: torch.Tensor
    """(n,) float32"""
    memory: torch.Tensor
    """(n,) float32: share of the token's probability that came from episodes"""
    versions: torch.Tensor
    """(n,) int32"""


class CaptureRing:
    """N rows, named by numbers that only grow: row r lies at r modulo N and is gone once r + N was written."""

    def __init__(self, rows: int, hidden_dim: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.capacity = rows
        self._next = 0
        self._hidden = torch.zeros(rows, hidden_dim, dtype=dtype, device=device)
        self._ids = torch.full((rows,), -1, dtype=torch.int32, device=device)
        self._logprobs = torch.zeros(rows, dtype=torch.float32, device=device)
        self._memory = torch.zeros(rows, dtype=torch.float32, device=device)
        self._versions = np.zeros(rows, np.int32)

    @property
    def nbytes(self) -> int:
        """On the device."""
        return self._hidden.numel() * self._hidden.element_size() + 12 * self.capacity

    def reserve(self, count: int) -> int | None:
        """`count` neighbouring rows: the first one's number. None when the ring is shorter than that."""
        if count > self.capacity:
            return None
        at = self._next % self.capacity
        first = self._next if at + count <= self.capacity else self._next + self.capacity - at
        self._next = first + count
        return first

    def write_hidden(
        self, first: int, hidden: torch.Tensor, versions: np.ndarray[tuple[int], np.dtype[np.int32]]
    ) -> None:
        """`hidden` (n, d); the tokens follow by `write_tokens`, until then they count as rejected."""
        at = first % self.capacity
        stop = at + hidden.shape[0]
        self._hidden[at:stop].copy_(hidden)
        self._ids[at:stop].fill_(-1)
        self._versions[at:stop] = versions

    def write_tokens(
        self, first: int, ids: torch.Tensor, logprobs: torch.Tensor, memory: torch.Tensor | None
    ) -> None:
        """(n,) each; an id below 0 is a rejected draft."""
        at = first % self.capacity
        stop = at + ids.shape[0]
        self._ids[at:stop].copy_(ids)
        self._logprobs[at:stop].copy_(logprobs)
        if memory is None:
            self._memory[at:stop].zero_()
        else:
            self._memory[at:stop].copy_(memory)

    def lost(self, rows: list[int]) -> int:
        """How many of these were overwritten."""
        oldest = self._next - self.capacity
        return 0 if not rows or rows[0] >= oldest else sum(row < oldest for row in rows)

    def read(self, rows: list[int]) -> Rows:
        """Those of them that hold a token. Waits for the device."""
        places = np.asarray(rows, np.int64) % self.capacity
        index = torch.from_numpy(places).to(self._ids.device)
        kept = torch.nonzero(self._ids[index] >= 0)[:, 0]
        index = index[kept]
        return Rows(
            hidden=self._hidden[index],
            token_ids=self._ids[index],
            logprobs=self._logprobs[index],
            memory=self._memory[index],
            versions=torch.from_numpy(self._versions[places][kept.cpu().numpy()]),
        )
