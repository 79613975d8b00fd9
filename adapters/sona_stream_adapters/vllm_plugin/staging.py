"""Steps that wait to be written to the ring. A step keeps what it made by reference, which costs next to nothing;
some dozens of them are put together by a few operations, where each for itself would cost ten.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from .plan import Captured
from .requests import Stretch

__all__ = ["Block", "Run", "Scored", "States", "own"]


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
class States:
    """What a step gave the lm_head; nobody writes to it any more. (Not frozen: made in every step.)"""

    hidden: torch.Tensor
    """(rows of the step, d)"""
    served: torch.Tensor | None
    """(rows of the step, d) where some are adapted"""
    capped: torch.Tensor | None
    """(rows of the step,) bool where some may be cut to the norm cap"""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Block:
    """n neighbouring rows of the ring."""

    first: int
    token_ids: torch.Tensor
    """(n,), below 0: rejected"""
    versions: NDArray[np.int32]
    """(n,)"""
    adapted: bool
    """some are: what was served is not `hidden`"""
    cuttable: bool
    """some may be cut to the norm cap"""
    hidden: torch.Tensor | None
    """(n, d); None: the states and the marks of those that were cut are in the ring already"""
    served: torch.Tensor | None
    """(n, d) where some are adapted"""
    capped: torch.Tensor | None
    """(n,) bool where some may be cut"""
    scored: list[tuple[int, Scored]]
    """with the row of the block from which their places count"""


class Run:
    """Neighbouring steps of one plan; none goes over the end of the ring. `CaptureRing.stage` adds to it."""

    __slots__ = ("accepted", "captured", "following", "scored", "states", "stretch", "token_ids", "written")

    def __init__(self, captured: Captured, first: int) -> None:
        self.captured = captured
        self.stretch = Stretch(first, captured.count)
        self.following = first
        """row in the ring at which its next step would begin"""
        self.written = 0
        """steps of it that are in the ring; of the others:"""
        self.token_ids: list[torch.Tensor] = []
        """(requests, k), below 0 where a draft was rejected"""
        self.accepted: list[torch.Tensor] = []
        """(requests,) how many of each row's are tokens, where the runner says so"""
        self.states: list[States] = []
        """none where the ring has them already"""
        self.scored: list[tuple[int, Scored]] = []
        """with the row from which their places count"""

    def block(self) -> Block:
        """Of the steps that are not written yet, which then are."""
        own, captured, states = self.stretch, self.captured, self.states
        first, steps = own.first + self.written * own.width, len(self.token_ids)
        served = [one.served for one in states if one.served is not None]
        capped = [one.capped for one in states if one.capped is not None]
        block = Block(
            first=first,
            token_ids=self._drawn(),
            versions=np.tile(captured.versions, steps),
            adapted=captured.adapted,
            cuttable=captured.cuttable,
            hidden=_rows([one.hidden for one in states], captured) if states else None,
            served=_rows(served, captured) if served else None,
            capped=_rows(capped, captured) if capped else None,
            scored=self.scored,
        )
        self.written += steps
        self.token_ids, self.accepted, self.states, self.scored = [], [], [], []
        return block

    def _drawn(self) -> torch.Tensor:
        """(n,)"""
        captured, parts = self.captured, self.token_ids
        place: torch.Tensor | int = 0 if captured.drafts is None else captured.drafts
        if all(part.shape == parts[0].shape for part in parts):
            ids = torch.stack(parts)[:, captured.requests, place]
        else:
            ids = torch.stack([part[captured.requests, place] for part in parts])
        if self.accepted:
            accepted = torch.stack(self.accepted)
            ids = torch.where(accepted.index_select(1, captured.requests) > place, ids, -1)
        return ids.flatten()


def own(tensor: torch.Tensor) -> torch.Tensor:
    """It, or a copy where it is part of a larger buffer, which the next step may write to."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def _rows(parts: list[torch.Tensor], captured: Captured) -> torch.Tensor:
    if captured.rows is None:
        return torch.cat(parts)
    return torch.stack(parts).index_select(1, captured.rows).flatten(0, 1)
