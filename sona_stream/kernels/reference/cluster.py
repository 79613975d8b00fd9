"""int8 codec, cosine search and one step of k-means, in numpy."""

from __future__ import annotations

import numpy as np

from ..contract import F32, I8, I64

__all__ = ["cosine_topk", "dequantize_row", "kmeans_step", "quantize_row", "scores"]


@np.errstate(invalid="ignore", over="ignore")
def quantize_row(x: F32, out: I8, /) -> tuple[float, float]:
    """(d,) into int8 (d,)"""
    top = np.float32(np.abs(x).max())
    scale = top / np.float32(127.0)
    if not (np.isfinite(top) and scale > 0):
        out[...] = 0
        return 0.0, float(x @ x)
    np.rint(x * (np.float32(127.0) / top), out=out, casting="unsafe")
    return float(scale), float(x @ x)


def dequantize_row(codes: I8, scale: float, out: F32, /) -> None:
    """int8 (d,) into (d,)"""
    np.multiply(codes, np.float32(scale), out=out)


def scores(C: F32, q: F32, /) -> F32:
    """(m, d), (d,) -> (m,)"""
    return np.asarray(C @ q)


def cosine_topk(C: F32, q: F32, k: int, /) -> tuple[I64, F32]:
    """(m, d), (d,) -> (k,), (k,)"""
    length = np.float32(np.sqrt(q @ q))
    cosines = C @ q / length if length > 0 else np.zeros(len(C), np.float32)
    k = min(k, len(cosines))
    best = np.argsort(-cosines, kind="stable")[:k]
    return best.astype(np.int64), np.asarray(cosines[best], dtype=np.float32)


def kmeans_step(X: F32, weights: F32, scores: F32, sums: F32, counts: F32, /) -> float:
    """(n, d), (n,), (n, k) into (k, d), (k,)"""
    labels = scores.argmax(axis=1)
    np.add.at(sums, labels, X * weights[:, None])
    np.add.at(counts, labels, weights)
    return float((scores[np.arange(len(labels)), labels] * weights).sum())
