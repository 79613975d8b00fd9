"""A vocabulary spread over ranks (tensor parallelism): which tokens are here, and how sums are made whole.

Every rank runs the same calls on the same captures, so the order of its reductions is the same everywhere. A rank
may hold no token at all: padding rounds a vocabulary up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

__all__ = ["Shard"]


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """Tokens ``start <= id < stop`` of the vocabulary, held by `rank` of `world`.

    `all_reduce` sums a contiguous float32 tensor over the ranks, in place or not, and returns it. Nothing else is
    asked of it: a maximum is a sum of slots that only one rank fills.
    """

    start: int
    stop: int
    rank: int = 0
    world: int = 1
    all_reduce: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"shard: tokens {self.start}..{self.stop} are no range")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"shard: rank {self.rank} is outside 0..{self.world - 1}")
        if self.world > 1 and self.all_reduce is None:
            raise ValueError("shard: all_reduce is needed where there is more than one rank")

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def alone(self) -> bool:
        """Whether this is the whole vocabulary."""
        return self.world == 1

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise over all ranks."""
        if self.all_reduce is None or self.world == 1:
            return values
        return self.all_reduce(values.contiguous())

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """(n, k) of every rank, the same k -> (n, world k)."""
        if self.world == 1:
            return values
        slots = values.new_zeros(values.shape[0], self.world, values.shape[1])
        slots[:, self.rank] = values
        return self.sum(slots).flatten(1)

    def row_max(self, values: torch.Tensor) -> torch.Tensor:
        """(n, v), v may be 0 here -> (n,): the largest of each row over all ranks."""
        if self.world == 1:
            return values.amax(1)
        own = values.amax(1) if values.shape[1] else values.new_full((values.shape[0],), -torch.inf)
        return self.gather(own[:, None]).amax(1)
