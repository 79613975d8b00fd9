"""What the pattern bank does with one query, in numpy."""

from __future__ import annotations

import math

import numpy as np

from ..contract import F32, F64

__all__ = ["attention_weight", "blend", "cheapest_merge", "closest"]


def closest(C: F32, q: F32, out: F64, /) -> int:
    """(m, d), (d,) into (m,)"""
    out[...] = C @ q
    return int(out.argmax())


def blend(C: F32, i: int, a: float, v: F32, b: float, gram: F64, products: F64, /) -> float:
    """Row i of (room, d), (d,), (g, g), (m,)"""
    moved = np.float32(a) * C[i] + np.float32(b) * v
    norm = math.sqrt(float(moved @ moved))
    if norm == 0:
        return 0.0
    C[i] = moved / np.float32(norm)
    m = len(products)
    if m <= len(gram):
        own = gram[i, i]
        gram[i, :m] = gram[:m, i] = (a * gram[i, :m] + b * products) / norm
        gram[i, i] = own
    return norm


def cheapest_merge(gram: F64, weights: F64, lengths: F64, cosines: F64, unit: float, /) -> tuple[int, int]:
    """(g, g), (m,) x 3"""
    m = len(cosines)
    weight, length = weights / unit, lengths
    join = weight / (weight + 1) * (1 + length**2 - 2 * length * cosines)
    pair = np.multiply.outer(weight, weight) / np.add.outer(weight, weight)
    pair *= np.add.outer(length**2, length**2) - 2 * np.multiply.outer(length, length) * gram[:m, :m]
    np.fill_diagonal(pair, np.inf)
    i, j = divmod(int(pair.argmin()), m)
    return (i, j) if pair[i, j] < join.min() else (-1, -1)


@np.errstate(over="ignore")
def attention_weight(weights: F64, /) -> float:
    """(n,) -> in [0.5, 1], or NaN"""
    sizes = np.abs(weights)
    total = float(sizes.sum())
    if not math.isfinite(total):
        return math.nan
    if len(sizes) < 2 or total <= 0:
        return 1.0
    share = sizes[sizes > 0] / total
    share = share[share > 0]
    return 1.0 + float((share * np.log(share)).sum()) / (2.0 * math.log(len(sizes)))
