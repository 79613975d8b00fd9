"""h' = h + B A h for the rows that asked for it, in float32, then back to the model's dtype."""

from __future__ import annotations

import torch

from .plan import Adapted

__all__ = ["adapt"]

_TINY = 1e-30


def adapt(hidden: torch.Tensor, plan: Adapted, max_delta: float) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(rows, d) -> (rows, d), a new tensor: the drafter and others read `hidden` later. The other rows keep their
    bits. No row moves by more than `max_delta` times its length; (rows,) bool says which were cut to that, None
    where none can be.
    """
    rows = hidden if plan.rows is None else hidden.index_select(0, plan.rows)
    states = rows if rows.dtype == torch.float32 else rows.float()
    products = torch.mm(states, plan.A)
    if plan.strangers is not None:
        products.masked_fill_(plan.strangers, 0.0)
    capped = None
    if plan.bounded:
        changed = torch.addmm(states, products, plan.B)
    else:
        delta = torch.mm(products, plan.B)
        room = torch.linalg.vector_norm(states, dim=1, keepdim=True).mul_(max_delta)
        size = torch.linalg.vector_norm(delta, dim=1, keepdim=True).clamp_min_(_TINY)
        share = room.div_(size)
        capped = share[:, 0] < 1.0
        changed = torch.addcmul(states, delta, share.clamp_max_(1.0))
    if changed.dtype != hidden.dtype:
        changed = changed.to(hidden.dtype)
    if plan.rows is None:
        return changed, capped
    if capped is not None:
        capped = torch.zeros(hidden.shape[0], dtype=torch.bool, device=hidden.device).index_copy_(
            0, plan.rows, capped
        )
    return hidden.index_copy(0, plan.rows, changed), capped
