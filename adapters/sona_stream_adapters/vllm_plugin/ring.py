"""Hidden states and ids of sampled tokens, on the device, without ever waiting for it.

Log-probabilities are not taken here: a sum over the vocabulary a row costs several times what everything else of a
step does, and most captures are never asked for. `scoring` takes them when one is.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from .plan import Captured
from .staging import Block, Run, Scored, States

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

    def first(self, count: int) -> Rows:
        """So many of them, from the beginning."""
        if count >= len(self.token_ids):
            return self
        return Rows(**{one.name: getattr(self, one.name)[:count] for one in dataclasses.fields(self)})


class CaptureRing:
    """N rows, named by numbers that only grow: row r lies at r modulo N and is gone once r + N was written."""

    def __init__(self, rows: int, hidden_dim: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.capacity, self.hidden_dim, self.dtype = rows, hidden_dim, dtype
        self._next = 0
        self._run: Run | None = None
        self._staged: list[Run] = []
        self._staged_steps = self._staged_rows = 0
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

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Of the hidden states, of what was served, and of the marks of rows that were cut, for who writes them
        as soon as their rows are reserved.
        """
        return self._hidden.data_ptr(), self._served.data_ptr(), self._capped.data_ptr()

    def reserve(self, count: int) -> int:
        """`count` neighbouring rows, not more than there are: the first one's number. What was there is lost."""
        if count > self.capacity:
            raise ValueError(f"{count} rows are more than the ring's {self.capacity}")
        at = self._next % self.capacity
        first = self._next if at + count <= self.capacity else self._next + self.capacity - at
        self._next = first + count
        return first

    def stage(
        self,
        captured: Captured,
        first: int,
        token_ids: torch.Tensor,
        accepted: torch.Tensor | None = None,
        states: States | None = None,
        scored: Scored | None = None,
    ) -> None:
        """A step into the rows that were reserved for it from `first` on; written with others, at the latest when
        rows are read. `states` None: they are there already. `token_ids` (requests, k), below 0 where a draft was
        rejected, and `accepted` (requests,), how many of each row's are tokens where the runner says so. Nobody
        writes to any of these later.
        """
        run = self._run
        if run is None or run.captured is not captured or run.following != first or not first % self.capacity:
            run = self._run = Run(captured, first)
            at = 0
            for tracked, count in captured.owners:
                tracked.stretches.append((run.stretch, range(at, at + count)))
                at += count
        if not run.token_ids:
            self._staged.append(run)
        if scored is not None:
            run.scored.append((len(run.token_ids) * captured.count, scored))
        if accepted is not None:
            run.accepted.append(accepted)
        if states is not None:
            run.states.append(states)
        run.token_ids.append(token_ids)
        run.stretch.steps += 1
        run.following = first + captured.count
        self._staged_steps += 1
        self._staged_rows += captured.count
        if self._staged_steps >= _STEPS or self._staged_rows >= _ROWS:
            self.flush()

    @torch.inference_mode()
    def flush(self) -> None:
        """Write what waits."""
        staged, self._staged = self._staged, []
        self._staged_steps = self._staged_rows = 0
        for run in staged:
            self.write(run.block())

    def write(self, block: Block) -> None:
        """Into the rows that were reserved for it."""
        at = block.first % self.capacity
        own = slice(at, at + len(block.versions))
        self._ids[own].copy_(block.token_ids)
        self._versions[own] = block.versions
        self._is_adapted[own] = block.adapted
        self._may_be_capped[own] = block.cuttable
        self._is_scored[own] = False
        if block.hidden is not None:
            self._hidden[own].copy_(block.hidden)
        if block.served is not None:
            self._served[own].copy_(block.served)
        if block.capped is not None:
            self._capped[own].copy_(block.capped)
        for start, scored in block.scored:
            rows = np.asarray(scored.places, np.int64) + at + start
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
