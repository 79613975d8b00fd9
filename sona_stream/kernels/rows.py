"""One decoding step of a language model on a CPU, compiled: rows of hidden states through their own low-rank
adapters, and into a ring. Importing this compiles it, or loads what was compiled before.

In such a step everything is cold: the model's weights went through the caches since the last one. What counts is
how many cache lines are touched, so the kernel takes addresses out of one prepared block of integers instead of
arrays, each of which would cost several lines to unpack.
"""

from __future__ import annotations

import math
from typing import Any

import numba as nb
import numpy as np
from numba import types
from numba.extending import intrinsic

__all__ = ["BLOCK_SIZE", "USER_SIZE", "adapt_and_keep"]

BLOCK_SIZE, USER_SIZE = 12, 5
"""integers of a block, and of each user in its table"""

_FASTMATH = {"reassoc", "contract", "nsz"}


def _pointer_to(item: Any) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def cast(typing_context: Any, address: Any) -> Any:
        signature = types.CPointer(item)(address)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return signature, generate

    return cast


_integers, _floats = _pointer_to(types.int64), _pointer_to(types.float32)
_doubles, _bytes = _pointer_to(types.float64), _pointer_to(types.uint8)


def _adapt_and_keep(block: int, hidden: int, place: int) -> int:
    """All arrays are C-contiguous. `hidden`: address of (n, d) float32; `place`: first row in the ring.

    `block`: address of BLOCK_SIZE int64:
      0 n, 1 d,
      2 how many users, 3 their table (users, USER_SIZE) int64: row, rank r, addresses of A (r, d) and B (r, d)
        float32, and whether the row may exceed the limit, 4 the limit on |delta| / |h| as float64,
      5 changed (n, d) float32: h + (h A^T) B for the users' rows, bit for bit h for all others; not written
        without users,
      6 cut (n,) uint8: 1 where the limit cut a row's delta,
      7 how many rows are kept, 8 which: int64, 9 ring of hidden states (., d) float32, 10 of changed ones, which
        is not written without users, 11 of `cut` (., ) uint8.
    Returns how many rows were cut.
    """
    b = nb.carray(_integers(block), BLOCK_SIZE)
    n, d, users, kept = b[0], b[1], b[2], b[7]
    h = nb.carray(_floats(hidden), (n, d))
    out = nb.carray(_floats(b[5]), (n, d))
    cut = nb.carray(_bytes(b[6]), n)
    table = nb.carray(_integers(b[3]), (users, USER_SIZE))
    cuts = 0
    if 0 < users < n:
        for i in range(n):
            for j in range(d):
                out[i, j] = h[i, j]
    for user in range(users):
        i, rank, measured = table[user, 0], table[user, 1], table[user, 4]
        A = nb.carray(_floats(table[user, 2]), (rank, d))
        B = nb.carray(_floats(table[user, 3]), (rank, d))
        for j in range(d):
            out[i, j] = np.float32(0.0) if measured else h[i, j]
        for k in range(rank):
            product = np.float32(0.0)
            for j in range(d):
                product += h[i, j] * A[k, j]
            for j in range(d):
                out[i, j] += product * B[k, j]
        if measured:
            length, size = np.float32(0.0), np.float32(0.0)
            for j in range(d):
                length += h[i, j] * h[i, j]
                size += out[i, j] * out[i, j]
            limit = nb.carray(_doubles(block), BLOCK_SIZE)[4]
            share = limit * math.sqrt(length) / max(math.sqrt(size), 1e-30)
            cut[i] = share < 1.0
            cuts += share < 1.0
            factor = np.float32(min(share, 1.0))
            for j in range(d):
                out[i, j] = h[i, j] + factor * out[i, j]
    if kept:
        picked = nb.carray(_integers(b[8]), kept)
        states = nb.carray(_floats(b[9]), (place + kept, d))
        for i in range(kept):
            for j in range(d):
                states[place + i, j] = h[picked[i], j]
        if users:
            changed = nb.carray(_floats(b[10]), (place + kept, d))
            marks = nb.carray(_bytes(b[11]), place + kept)
            for i in range(kept):
                for j in range(d):
                    changed[place + i, j] = out[picked[i], j]
                marks[place + i] = cut[picked[i]]
    return cuts


def _compiled() -> Any:
    """The function itself, not the dispatcher before it, which looks for the one signature that there is and costs
    as much as a third of the work.
    """
    signature = types.int64(types.int64, types.int64, types.int64)
    options = {"fastmath": _FASTMATH, "error_model": "numpy", "nogil": False}
    try:
        dispatcher = nb.njit(signature, cache=True, **options)(_adapt_and_keep)
    except RuntimeError as error:
        if "cache" not in str(error):
            raise
        dispatcher = nb.njit(signature, **options)(_adapt_and_keep)  # no folder to keep it in
    (compiled,) = dispatcher.overloads.values()
    return compiled.entry_point


adapt_and_keep = _compiled()
