"""What one pass over a batch works with: the rows of lm_head in play, and where the labels are among them."""

from __future__ import annotations

import torch

from .batch import Batch, Segment
from .heads import Head
from .weight_rows import WeightRows

__all__ = ["Prepared"]


class Prepared:
    """`rows` (v, d) are all of the shard's, or those of `kept` (v,), ascending local ids."""

    def __init__(self, head: Head, batch: Batch, rows: WeightRows, kept: torch.Tensor | None) -> None:
        self.head, self.batch, self.rows, self.kept = head, batch, rows, kept
        shard = head.shard
        here = batch.token_ids - shard.start
        self._owned = None if shard.alone else ((here >= 0) & (here < len(shard))).float()
        if kept is not None:
            here = torch.searchsorted(kept, here)
        self._labels = here if shard.alone else here.clamp(0, max(len(rows) - 1, 0))

    def project(self, B: torch.Tensor) -> torch.Tensor:
        """(d, q) -> (q, v): W B, transposed, and centred over the vocabulary.

        A softmax does not see what is common to all logits, but its rounding does: rows of W have a large mean. A
        soft cap does see it.
        """
        product = self.rows.project(B)
        if self.head.soft_cap is not None:
            return product
        if self.head.shard.alone:
            return product.sub_(product.mean(1, keepdim=True))
        own = torch.cat([product.sum(1), product.new_tensor([product.shape[1]])])
        total = self.head.shard.sum(own)
        return product.sub_((total[:-1] / total[-1])[:, None])

    def pick(self, values: torch.Tensor, segment: Segment) -> torch.Tensor:
        """(n, v) -> (n,): each label's entry, from whichever rank has it."""
        index = self._labels[segment.start : segment.stop, None]
        if self._owned is None:
            return values.gather(1, index)[:, 0]
        owned = self._owned[segment.start : segment.stop]
        own = values.gather(1, index)[:, 0] * owned if values.shape[1] else torch.zeros_like(owned)
        return self.head.shard.sum(own)

    def subtract(self, values: torch.Tensor, amounts: torch.Tensor, segment: Segment) -> torch.Tensor:
        """`values` (n, v), changed: less `amounts` (n,) at each label that is here."""
        if self._owned is not None:
            amounts = amounts * self._owned[segment.start : segment.stop]
        if values.shape[1]:
            values.scatter_add_(1, self._labels[segment.start : segment.stop, None], -amounts[:, None])
        return values
