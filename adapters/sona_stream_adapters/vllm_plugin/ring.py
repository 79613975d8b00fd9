"""Hidden states and ids of sampled tokens, on the device, without ever waiting for it.

Log-probabilities are not taken here: a sum over the vocabulary a row costs several times what everything else of a
step does, and most captures are never asked for. `scoring` takes them when one is.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["CaptureRing", "Rows", "Scored"]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Log-probabilities that cannot be taken later, because not the lm_head alone made them."""

    places: list[int]
    """which of the step's captured rows"""
    logprobs: torch.Tensor
    """(m,) float32"""
    memory: torch.Tensor
    """(m,) float32: share of each token's probability that came from episodes"""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What the ring holds of some rows, copied out of it."""

    hidden: torch.Tensor
    """(n, d) in the model's dtype"""
    served: torch.Tensor
    """(n, d): what the lm_head was given, adapted or not"""
    token_ids: torch.Tensor
    """(n,) int32"""
    logprobs: torch.Tensor
    """(n,) float32, where `scored`"""
    memory: torch.Tensor
    """(n,) float32: share of the token's probability that came from episodes"""
    capped: torch.Tensor
    """(n,) bool: the adapter's change was cut to the norm cap"""
    versions: torch.Tensor
    """(n,) int32, on the CPU"""
    scored: torch.Tensor
    """(n,) bool, on the CPU: whether `logprobs` is known"""


class CaptureRing:
    """N rows, named by numbers that only grow: row r lies at r modulo N and is gone once r + N was written."""

    def __init__(self, rows: int, hidden_dim: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.capacity = rows
        self._next = 0
        self._hidden = torch.zeros(rows, hidden_dim, dtype=dtype, device=device)
        self._served = torch.zeros_like(self._hidden)
        self._ids = torch.full((rows,), -1, dtype=torch.int32, device=device)
        self._logprobs = torch.zeros(rows, dtype=torch.float32, device=device)
        self._memory = torch.zeros(rows, dtype=torch.float32, device=device)
        self._capped = torch.zeros(rows, dtype=torch.bool, device=device)
        self._versions = np.zeros(rows, np.int32)
        # What most rows do not have is only marked here, so that a step need not clear it on the device.
        self._is_adapted, self._may_be_capped, self._is_scored = (np.zeros(rows, bool) for _ in range(3))

    @property
    def nbytes(self) -> int:
        """On the device."""
        return 2 * self._hidden.numel() * self._hidden.element_size() + 13 * self.capacity

    def reserve(self, count: int) -> int | None:
        """`count` neighbouring rows: the first one's number. None when the ring is shorter than that."""
        if count > self.capacity:
            return None
        at = self._next % self.capacity
        first = self._next if at + count <= self.capacity else self._next + self.capacity - at
        self._next = first + count
        return first

    def write_hidden(
        self,
        first: int,
        hidden: torch.Tensor,
        versions: NDArray[np.int32],
        *,
        served: torch.Tensor | None = None,
        capped: torch.Tensor | None = None,
    ) -> None:
        """`hidden` (n, d); `served` (n, d) where some rows are adapted, `capped` (n,) where some may be cut. The
        tokens follow by `write_tokens`, until then they count as rejected.
        """
        at = first % self.capacity
        own = slice(at, at + hidden.shape[0])
        self._hidden[own].copy_(hidden)
        self._ids[own].fill_(-1)
        self._versions[own] = versions
        self._is_scored[own] = False
        self._is_adapted[own] = served is not None
        self._may_be_capped[own] = capped is not None
        if served is not None:
            self._served[own].copy_(served)
        if capped is not None:
            self._capped[own].copy_(capped)

    def write_tokens(self, first: int, ids: torch.Tensor, scored: Scored | None = None) -> None:
        """(n,); an id below 0 is a rejected draft."""
        at = first % self.capacity
        self._ids[at : at + ids.shape[0]].copy_(ids)
        if scored is not None:
            rows = np.asarray(scored.places, np.int64) + at
            index = torch.from_numpy(rows).to(self._ids.device)
            self._logprobs[index] = scored.logprobs
            self._memory[index] = scored.memory
            self._is_scored[rows] = True

    def lost(self, rows: list[int]) -> int:
        """How many of these were overwritten."""
        oldest = self._next - self.capacity
        return 0 if not rows or rows[0] >= oldest else sum(row < oldest for row in rows)

    def read(self, rows: list[int]) -> Rows:
        """Those of them that hold a token. Waits for the device."""
        device = self._ids.device
        places = np.asarray(rows, np.int64) % self.capacity
        index = torch.from_numpy(places).to(device)
        kept = torch.nonzero(self._ids[index] >= 0)[:, 0]
        index, places = index[kept], places[kept.cpu().numpy()]
        adapted, cuttable, scored = (
            torch.from_numpy(marks[places]) for marks in (self._is_adapted, self._may_be_capped, self._is_scored)
        )
        hidden = self._hidden[index]
        return Rows(
            hidden=hidden,
            served=torch.where(adapted.to(device)[:, None], self._served[index], hidden),
            token_ids=self._ids[index],
            logprobs=self._logprobs[index],
            memory=torch.where(scored.to(device), self._memory[index], 0.0),
            capped=self._capped[index] & cuttable.to(device),
            versions=torch.from_numpy(self._versions[places]),
            scored=scored,
        )
