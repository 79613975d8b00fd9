"""What callers hand in, made into float32 vectors, or refused with an error that names the argument."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["F32", "in_range", "number", "require_finite", "rows", "vector"]

F32 = NDArray[np.float32]
_FLOAT = np.dtype(np.float32)


def rows(value: ArrayLike, dim: int, name: str) -> F32:
    """(d,) or (n, d), any real dtype -> an aligned, writable, C-contiguous float32 array of the same shape.

    Raises ValueError for another shape or for entries that are not numbers. Finiteness is not checked here.
    """
    try:
        given = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must hold real numbers only: {error}") from None
    if given.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold real numbers only, not {given.dtype}")
    if given.dtype == _FLOAT:
        array = given
    else:
        with np.errstate(over="ignore"):
            array = given.astype(np.float32)
    if array.ndim not in (1, 2) or array.shape[-1] != dim:
        raise ValueError(f"{name} must have shape ({dim},) or (n, {dim}), not {array.shape}")
    return array if array.flags.carray else np.array(array, dtype=np.float32, order="C")


def vector(value: ArrayLike, dim: int, name: str) -> F32:
    """(d,) of any real dtype -> float32; raises ValueError naming the argument."""
    if type(value) is np.ndarray and value.dtype == _FLOAT and value.shape == (dim,) and value.flags.carray:
        return value
    array = rows(value, dim, name)
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape ({dim},), not {array.shape}")
    return array


def require_finite(array: F32, name: str) -> None:
    """The exact scan: raises ValueError when an entry is NaN or infinite as float32."""
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite (NaN or infinity found; float32 reaches 3.4e38)")


def number(value: Any, name: str) -> float:
    """A finite real number, or ValueError."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, not {value!r}") from None
    if not math.isfinite(result):
        raise ValueError(f"{name} must be finite, not {value!r}")
    return result


def in_range(value: Any, name: str, low: float, high: float) -> float:
    """A number in [low, high], or ValueError."""
    result = number(value, name)
    if not low <= result <= high:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}], not {value!r}")
    return result
