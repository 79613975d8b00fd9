"""How kernels are compiled: once, ahead of use, for the one signature they have, and kept on disk.

fastmath lets LLVM reorder sums, contract to fused multiply-add and forget signed zeros, and nothing else: NaN and
infinities keep their meaning, which is what the finiteness check of the caller rests on.
Weights are typed read-only, so that published (frozen) arrays and private ones share one compiled body.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba as nb
from numba import types

__all__ = ["BLOCK", "CODES", "INDEX", "LINE", "LINE64", "MATRIX", "ROW", "SMALL", "STACK", "WEIGHTS", "kernel"]

ROW = types.Array(types.float32, 1, "C")
MATRIX = types.Array(types.float32, 2, "C")
WEIGHTS = types.Array(types.float32, 2, "C", readonly=True)
STACK = types.Array(types.float32, 3, "C", readonly=True)
BLOCK = types.Array(types.float32, 2, "C", readonly=True)
INDEX = types.Array(types.int64, 1, "C", readonly=True)
CODES = types.Array(types.int8, 1, "C")
LINE = types.Array(types.float32, 1, "C", readonly=True)
LINE64 = types.Array(types.float64, 1, "C", readonly=True)
SMALL = types.Array(types.float64, 2, "C")

_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
F = TypeVar("F", bound=Callable[..., Any])


def kernel(signature: Any, *, nogil: bool) -> Callable[[F], F]:
    """Compile for one signature. `nogil` only for bodies of 50 microseconds and more: a short call that gives the
    GIL up may have to wait a whole switch interval (5 ms) to get it back from a busy thread.
    """

    def decorate(body: F) -> F:
        options = {"nogil": nogil, "fastmath": _FASTMATH, "error_model": "numpy"}
        try:
            return nb.njit(signature, cache=True, **options)(body)  # type: ignore[no-any-return]
        except RuntimeError as error:
            if "cache" not in str(error):
                raise
            # Neither beside the source nor in the user's cache folder can anything be written.
            return nb.njit(signature, **options)(body)  # type: ignore[no-any-return]

    return decorate
