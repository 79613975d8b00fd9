"""Search among the queries of remembered episodes, in numpy."""

from __future__ import annotations

import numpy as np

from ..contract import F32, I8, I32, I64

__all__ = ["nearest_in_list"]


def nearest_in_list(
    codes: I8, inverse: F32, following: I32, head: int, q: I8, inverse_q: float, least: float, k: int, /
) -> tuple[I64, F32]:
    """int8 (n, e), (n,), (n,), int8 (e,) -> (m,), (m,), m <= k"""
    slots, i = [], head
    while i >= 0:
        slots.append(i)
        i = int(following[i])
    found = np.array(slots, np.int64)
    totals = codes[found].astype(np.int32) @ q.astype(np.int32)
    cosines = totals.astype(np.float32) * inverse[found] * np.float32(inverse_q)
    order = np.argsort(-cosines, kind="stable")[:k]
    order = order[cosines[order] >= least]
    return found[order], cosines[order]
