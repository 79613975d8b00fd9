"""Low-rank apply and gradients in numpy (https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

import numpy as np

from ..contract import F32, I64

__all__ = [
    "fisher_accumulate",
    "lora_batch",
    "lora_batch_into",
    "lora_gradients",
    "lora_many",
    "lora_row",
    "lora_row_into",
]

# What is not finite shows in the returned sum of squares; a warning on top would only be noise.
_quiet = np.errstate(invalid="ignore", over="ignore")


@_quiet
def lora_row(x: F32, A: F32, Bt: F32, /) -> tuple[F32, float]:
    """(d,) -> (d,)"""
    return np.asarray(x + (A @ x) @ Bt, dtype=np.float32), float(x @ x)


@_quiet
def lora_row_into(x: F32, A: F32, Bt: F32, out: F32, /) -> float:
    """(d,) into out (d,)"""
    np.add((A @ x) @ Bt, x, out=out)
    return float(x @ x)


@_quiet
def lora_batch(X: F32, A: F32, Bt: F32, /) -> tuple[F32, float]:
    """(n, d) -> (n, d)"""
    return np.asarray(X + (X @ A.T) @ Bt, dtype=np.float32), float(np.vdot(X, X))


@_quiet
def lora_batch_into(X: F32, A: F32, Bt: F32, out: F32, /) -> float:
    """(n, d) into out (n, d)"""
    np.add((X @ A.T) @ Bt, X, out=out)
    return float(np.vdot(X, X))


@_quiet
def lora_many(X: F32, index: I64, A: F32, Bt: F32, out: F32, /) -> float:
    """(n, d), each row through its own adapter"""
    out[...] = X
    for k in np.unique(index[index >= 0]):
        rows = index == k
        out[rows] = X[rows] + (X[rows] @ A[k].T) @ Bt[k]
    return float(np.vdot(X, X))


def lora_gradients(G: F32, X: F32, A: F32, Bt: F32, /) -> tuple[F32, F32]:
    """(n, d) x 2 -> (r, d) x 2"""
    return np.asarray((G @ Bt.T).T @ X, dtype=np.float32), np.asarray((X @ A.T).T @ G, dtype=np.float32)


def fisher_accumulate(G: F32, X: F32, A: F32, Bt: F32, fisher_A: F32, fisher_Bt: F32, /) -> None:
    """(n, d) x 2 into (r, d) x 2"""
    fisher_A += ((G @ Bt.T) ** 2).T @ X**2
    fisher_Bt += ((X @ A.T) ** 2).T @ G**2
