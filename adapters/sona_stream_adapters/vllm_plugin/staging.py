"""Steps that wait to be written to the ring. A step keeps what it made by reference, which costs next to nothing;
some dozens of them are put together by a few operations, where each for itself would cost ten.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .plan import Captured

__all__ = ["Block", "Scored", "Step", "blocks", "own"]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Log-probabilities that cannot be taken later, because not the lm_head alone made them."""

    places: list[int]
    """which of the captured rows"""
    logprobs: torch.Tensor
    """(m,) float32"""
    memory: torch.Tensor
    """(m,) float32: share of each token's probability that came from episodes"""


@dataclasses.dataclass(slots=True, eq=False)
class Step:
    """What one step of the model left; tensors that nobody writes to any more. (Not frozen: made in every step.)"""

    captured: Captured
    first: int
    """row in the ring"""
    hidden: torch.Tensor
    """(rows of the step, d)"""
    served: torch.Tensor | None
    """(rows of the step, d) where some are adapted"""
    capped: torch.Tensor | None
    """(rows of the step,) bool where some may be cut to the norm cap"""
    token_ids: torch.Tensor
    """(requests, k), below 0 where a draft was rejected"""
    accepted: torch.Tensor | None
    """(requests,) how many of each row's are tokens, where the runner says so"""
    scored: Scored | None

    def continues(self, other: Step) -> bool:
        """Whether it can be put together with the one before it."""
        return (
            self.captured is other.captured
            and self.first == other.first + self.captured.count
            and self.scored is None
            and other.scored is None
            and (self.served is None) == (other.served is None)
            and (self.capped is None) == (other.capped is None)
            and (self.accepted is None) == (other.accepted is None)
            and self.token_ids.shape == other.token_ids.shape
        )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Block:
    """n neighbouring rows of the ring."""

    first: int
    hidden: torch.Tensor
    """(n, d)"""
    token_ids: torch.Tensor
    """(n,), below 0: rejected"""
    versions: NDArray[np.int32]
    """(n,)"""
    served: torch.Tensor | None = None
    """(n, d) where some are adapted"""
    capped: torch.Tensor | None = None
    """(n,) bool where some may be cut"""
    scored: Scored | None = None


def blocks(steps: Sequence[Step], capacity: int) -> Iterator[Block]:
    """In their order; none goes over the end of a ring of so many rows."""
    run: list[Step] = []
    for step in steps:
        if run and (step.first % capacity == 0 or not step.continues(run[-1])):
            yield _joined(run)
            run = []
        run.append(step)
    if run:
        yield _joined(run)


def own(tensor: torch.Tensor) -> torch.Tensor:
    """It, or a copy where it is part of a larger buffer, which the next step may write to."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def _joined(steps: list[Step]) -> Block:
    captured, first = steps[0].captured, steps[0]
    ids = torch.stack([step.token_ids for step in steps])
    place: torch.Tensor | int = 0 if captured.drafts is None else captured.drafts
    ids = ids[:, captured.requests, place]
    if first.accepted is not None:
        accepted = torch.stack([step.accepted for step in steps if step.accepted is not None])
        ids = torch.where(accepted.index_select(1, captured.requests) > place, ids, -1)
    return Block(
        first=first.first,
        hidden=_rows([step.hidden for step in steps], captured),
        token_ids=ids.flatten(),
        versions=np.tile(captured.versions, len(steps)),
        served=_rows([step.served for step in steps if step.served is not None], captured)
        if first.served is not None
        else None,
        capped=_rows([step.capped for step in steps if step.capped is not None], captured)
        if first.capped is not None
        else None,
        scored=first.scored,
    )


def _rows(parts: list[torch.Tensor], captured: Captured) -> torch.Tensor:
    if captured.rows is None:
        return torch.cat(parts)
    return torch.stack(parts).index_select(1, captured.rows).flatten(0, 1)
