"""Low-rank apply and gradients, compiled. Documentation of each: `kernels.contract`."""

from __future__ import annotations

import numpy as np
from numba import types

from ..contract import F32, I64
from .jit import BLOCK, INDEX, MATRIX, ROW, STACK, WEIGHTS, kernel

__all__ = [
    "fisher_accumulate",
    "lora_batch",
    "lora_batch_into",
    "lora_gradients",
    "lora_many",
    "lora_row",
    "lora_row_into",
]


@kernel(types.float32(ROW, WEIGHTS, WEIGHTS, ROW), nogil=False)
def lora_row_into(x: F32, A: F32, Bt: F32, out: F32, /) -> float:
    """(d,) into out (d,); ranks 1 and 2 in two passes, higher ranks row by row"""
    d, r = x.shape[0], A.shape[0]
    square = np.float32(0.0)
    z0 = np.float32(0.0)
    z1 = np.float32(0.0)
    if r == 2:
        for j in range(d):
            v = x[j]
            square += v * v
            z0 += v * A[0, j]
            z1 += v * A[1, j]
        for j in range(d):
            out[j] = x[j] + z0 * Bt[0, j] + z1 * Bt[1, j]
        return float(square)
    for j in range(d):
        v = x[j]
        square += v * v
        z0 += v * A[0, j]
    for j in range(d):
        out[j] = x[j] + z0 * Bt[0, j]
    for k in range(1, r):
        z = np.float32(0.0)
        for j in range(d):
            z += x[j] * A[k, j]
        for j in range(d):
            out[j] += z * Bt[k, j]
    return float(square)


@kernel(types.Tuple((ROW, types.float32))(ROW, WEIGHTS, WEIGHTS), nogil=False)
def lora_row(x: F32, A: F32, Bt: F32, /) -> tuple[F32, float]:
    """(d,) -> (d,)"""
    out = np.empty(x.shape[0], np.float32)
    return out, lora_row_into(x, A, Bt, out)


@kernel(types.float32(MATRIX, WEIGHTS, WEIGHTS, MATRIX), nogil=False)
def lora_batch_into(X: F32, A: F32, Bt: F32, out: F32, /) -> float:
    """(n, d) into out (n, d)"""
    square = np.float32(0.0)
    for i in range(X.shape[0]):
        square += lora_row_into(X[i], A, Bt, out[i])
    return float(square)


@kernel(types.Tuple((MATRIX, types.float32))(MATRIX, WEIGHTS, WEIGHTS), nogil=False)
def lora_batch(X: F32, A: F32, Bt: F32, /) -> tuple[F32, float]:
    """(n, d) -> (n, d)"""
    out = np.empty(X.shape, np.float32)
    return out, lora_batch_into(X, A, Bt, out)


@kernel(types.float32(MATRIX, INDEX, STACK, STACK, MATRIX), nogil=False)
def lora_many(X: F32, index: I64, A: F32, Bt: F32, out: F32, /) -> float:
    """(n, d), each row through its own adapter"""
    square = np.float32(0.0)
    for i in range(X.shape[0]):
        if index[i] >= 0:
            square += lora_row_into(X[i], A[index[i]], Bt[index[i]], out[i])
            continue
        for j in range(X.shape[1]):
            square += X[i, j] * X[i, j]
            out[i, j] = X[i, j]
    return float(square)


@kernel(types.UniTuple(MATRIX, 2)(BLOCK, BLOCK, WEIGHTS, WEIGHTS), nogil=True)
def lora_gradients(G: F32, X: F32, A: F32, Bt: F32, /) -> tuple[F32, F32]:
    """(n, d) x 2 -> (r, d) x 2"""
    (n, d), r = X.shape, A.shape[0]
    grad_A = np.zeros((r, d), np.float32)
    grad_Bt = np.zeros((r, d), np.float32)
    for i in range(n):
        for k in range(r):
            z = np.float32(0.0)
            b = np.float32(0.0)
            for j in range(d):
                z += A[k, j] * X[i, j]
                b += Bt[k, j] * G[i, j]
            for j in range(d):
                grad_A[k, j] += b * X[i, j]
                grad_Bt[k, j] += z * G[i, j]
    return grad_A, grad_Bt


@kernel(types.void(BLOCK, BLOCK, WEIGHTS, WEIGHTS, MATRIX, MATRIX), nogil=True)
def fisher_accumulate(G: F32, X: F32, A: F32, Bt: F32, fisher_A: F32, fisher_Bt: F32, /) -> None:
    """(n, d) x 2 into (r, d) x 2"""
    (n, d), r = X.shape, A.shape[0]
    for i in range(n):
        for k in range(r):
            z = np.float32(0.0)
            b = np.float32(0.0)
            for j in range(d):
                z += A[k, j] * X[i, j]
                b += Bt[k, j] * G[i, j]
            z *= z
            b *= b
            for j in range(d):
                fisher_A[k, j] += b * X[i, j] * X[i, j]
                fisher_Bt[k, j] += z * G[i, j] * G[i, j]
