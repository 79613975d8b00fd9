"""Hidden states and ids of sampled tokens, on the device, without ever waiting for it.

Log-probabilities are not taken here: a sum over the vocabulary a row costs several times what everything else of a
step does, and most captures are never asked for. `scoring` takes them when one is.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from .staging import Block, Step, blocks

__all__ = ["CaptureRing", "Rows"]

_STEPS, _ROWS = 32, 1024
"""that may wait to be written"""


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
        self._staged: list[Step] = []
        self._staged_rows = 0
        self._hidden = torch.zeros(rows, hidden_dim, dtype=dtype, device=device)
        self._served = torch.zeros_like(self._hidden)
        self._ids = torch.full((rows,), -1, dtype=torch.int32, device=device)
        self._logprobs = torch.zeros(rows, dtype=torch.float32, device=device)
        self._memory = torch.zeros(rows, dtype=torch.float32, device=device)
        self._capped = torch.zeros(rows, dtype=torch.bool, device=device)
        self._versions = np.zeros(rows, np.int32)
        # What most rows do not have is only marked here, so that nothing need be cleared on the device.
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

    def stage(self, step: Step) -> None:
        """To be written with others, at the latest when rows are read."""
        self._staged.append(step)
        self._staged_rows += step.captured.count
        if len(self._staged) >= _STEPS or self._staged_rows >= _ROWS:
            self.flush()

    @torch.inference_mode()
    def flush(self) -> None:
        """Write what waits."""
        staged, self._staged, self._staged_rows = self._staged, [], 0
        for block in blocks(staged, self.capacity):
            self.write(block)

    def write(self, block: Block) -> None:
        """Into the rows that were reserved for it."""
        at = block.first % self.capacity
        own = slice(at, at + len(block.versions))
        self._hidden[own].copy_(block.hidden)
        self._ids[own].copy_(block.token_ids)
        self._versions[own] = block.versions
        self._is_adapted[own] = block.served is not None
        self._may_be_capped[own] = block.capped is not None
        self._is_scored[own] = False
        if block.served is not None:
            self._served[own].copy_(block.served)
        if block.capped is not None:
            self._capped[own].copy_(block.capped)
        if block.scored is not None:
            rows = np.asarray(block.scored.places, np.int64) + at
            index = torch.from_numpy(rows).to(self._ids.device)
            self._logprobs[index] = block.scored.logprobs
            self._memory[index] = block.scored.memory
            self._is_scored[rows] = True

    def lost(self, rows: list[int]) -> int:
        """How many of these were overwritten."""
        oldest = self._next - self.capacity
        return 0 if not rows or rows[0] >= oldest else sum(row < oldest for row in rows)

    def read(self, rows: list[int]) -> Rows:
        """Those of them that hold a token. Waits for the device."""
        self.flush()
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
