"""How much of what a policy would say repeats what was said: what degenerate text looks like before it is spoken.

Two numbers, each with and without the adapter, over captured answers. `collision`: the chance that two positions,
taken at random, draw the same token. Text that ends in "and and and" comes from an adapter that wants one token
everywhere, so it shows in what is predicted at ordinary positions long before an answer is lost. `repeat_mass`: the
chance that a position draws one of the tokens just before it.
"""

from __future__ import annotations

import torch

from .batch import Batch, Segment
from .shard import Shard

__all__ = ["RECENT", "Repetition"]

RECENT = 16
"""tokens of the same answer that a repeat may look back"""


class Repetition:
    """Gathers over the segments of one batch; every rank of a sharded vocabulary makes the same calls."""

    def __init__(self, batch: Batch, shard: Shard) -> None:
        self._shard, self._tokens = shard, len(batch)
        recent = _recent(batch)
        here = recent - shard.start
        self._counts = (_first_of_each(recent) & (here >= 0) & (here < len(shard))).float()
        self._places = here.clamp(0, max(len(shard) - 1, 0))
        self._means = torch.zeros(2, len(shard), dtype=torch.float64, device=batch.hidden.device)
        self._masses = torch.zeros(2, dtype=torch.float64, device=batch.hidden.device)

    def take(self, segment: Segment, p: torch.Tensor, base_p: torch.Tensor, base_total: torch.Tensor) -> None:
        """`p` (n, v) with the adapter, `base_p` (n, v) without, up to its row sums `base_total` (n,)."""
        at = slice(segment.start, segment.stop)
        ones, weights = torch.ones_like(base_total), base_total.reciprocal()
        for row, (values, scale) in enumerate(((p, ones), (base_p, weights))):
            self._means[row] += values.T @ scale
            if values.shape[1]:
                picked = values.gather(1, self._places[at]).mul_(self._counts[at])
                self._masses[row] += (picked.sum(1) * scale).double().sum()

    def result(self) -> tuple[float, float, float, float]:
        """Collision with and without the adapter, mass of recent tokens with and without it."""
        own = torch.cat([(self._means / self._tokens).square().sum(1), self._masses / self._tokens]).float()
        values = self._shard.sum(own).tolist()
        return values[0], values[1], values[2], values[3]


def _recent(batch: Batch) -> torch.Tensor:
    """(N, RECENT) token ids before each token within its answer, the nearest first; -1 where there is none."""
    ids = batch.token_ids
    lengths = [len(capture) for capture in batch.captures]
    position = torch.cat([torch.arange(n, device=ids.device) for n in lengths])
    recent = torch.full((len(ids), RECENT), -1, dtype=ids.dtype, device=ids.device)
    for back in range(1, min(RECENT, max(lengths) - 1) + 1):
        there = position >= back
        recent[there, back - 1] = torch.roll(ids, back)[there]
    return recent


def _first_of_each(recent: torch.Tensor) -> torch.Tensor:
    """(N, RECENT): whether an entry is a token, and the nearest of its kind in the row."""
    same = recent[:, :, None] == recent[:, None, :]
    earlier = torch.ones(RECENT, RECENT, dtype=torch.bool, device=recent.device).tril(-1)
    return (recent >= 0) & ~(same & earlier).any(2)
