"""Search among the queries of remembered episodes, compiled. Documentation: `kernels.contract`."""

from __future__ import annotations

import numpy as np
from numba import int32, types

from ..contract import F32, I8, I32, I64
from .jit import LINE, ROW, kernel

__all__ = ["nearest_in_list"]

_ROWS = types.Array(types.int8, 2, "C", readonly=True)
_QUERY = types.Array(types.int8, 1, "C", readonly=True)
_LINKS = types.Array(types.int32, 1, "C", readonly=True)
_FOUND = types.Array(types.int64, 1, "C")


@kernel(
    types.Tuple((_FOUND, ROW))(_ROWS, LINE, _LINKS, types.int64, _QUERY, types.float64, types.float64, types.int64),
    nogil=False,
)
def nearest_in_list(
    codes: I8, inverse: F32, following: I32, head: int, q: I8, inverse_q: float, least: float, k: int, /
) -> tuple[I64, F32]:
    """int8 (n, e), (n,), (n,), int8 (e,) -> (m,), (m,), m <= k"""
    found = np.empty(k, np.int64)
    best = np.empty(k, np.float32)
    length = np.float32(inverse_q)
    m = 0
    i = head
    while i >= 0:
        # 32-bit products and sum: LLVM makes one multiply-add instruction of 32 pairs of them (vpmaddwd)
        total = int32(0)
        for j in range(codes.shape[1]):
            total = int32(total + int32(int32(codes[i, j]) * int32(q[j])))
        cosine = np.float32(total) * inverse[i] * length
        if cosine >= least and (m < k or (m > 0 and cosine > best[m - 1])):
            place = m if m < k else k - 1
            m = place + 1 if m < k else k
            while place > 0 and cosine > best[place - 1]:
                best[place] = best[place - 1]
                found[place] = found[place - 1]
                place -= 1
            best[place] = cosine
            found[place] = i
        i = following[i]
    return found[:m], best[:m]
