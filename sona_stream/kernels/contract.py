"""What both implementations of the kernels offer."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Kernels"]

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
I64 = NDArray[np.int64]


class Kernels(Protocol):
    """Shapes: x (d,), X (n, d), A (r, d), Bt (r, d), logits (T, V). Everything float32 unless typed otherwise."""

    def lora_row(self, x: F32, A: F32, Bt: F32, /) -> tuple[F32, float]:
        """-> (x + (A x) Bt in a new array, x.x)"""
        ...

    def lora_row_into(self, x: F32, A: F32, Bt: F32, out: F32, /) -> float:
        """The same into `out`; -> x.x"""
        ...

    def lora_batch(self, X: F32, A: F32, Bt: F32, /) -> tuple[F32, float]:
        """-> (every row adapted, in a new array; sum of all squares)"""
        ...

    def lora_batch_into(self, X: F32, A: F32, Bt: F32, out: F32, /) -> float: ...

    def lora_many(self, X: F32, index: I64, A: F32, Bt: F32, out: F32, /) -> float:
        """Row i through adapter index[i] of A, Bt (K, r, d); index -1 copies the row bit for bit."""
        ...

    def lora_gradients(self, G: F32, X: F32, A: F32, Bt: F32, /) -> tuple[F32, F32]:
        """G (n, d) = dL/d out -> (dL/dA, dL/dBt), summed over rows: (G Btᵀ)ᵀ X and (X Aᵀ)ᵀ G."""
        ...

    def fisher_accumulate(self, G: F32, X: F32, A: F32, Bt: F32, fisher_A: F32, fisher_Bt: F32, /) -> None:
        """fisher_A += ((G Btᵀ)∘²)ᵀ X∘², fisher_Bt += ((X Aᵀ)∘²)ᵀ G∘², in place."""
        ...

    def log_probabilities(self, logits: F32, ids: I64, temperature: float, /) -> F32:
        """-> (T,) log softmax(logits / temperature)[ids]"""
        ...

    def softmax_minus_onehot(self, logits: F32, ids: I64, temperature: float, out: F32, /) -> None:
        """Out (T, V) = softmax(logits / temperature) - onehot(ids)"""
        ...

    def kl_rows(self, logits: F32, base_logits: F32, temperature: float, /) -> F32:
        """-> (T,) KL(softmax(logits / t) || softmax(base_logits / t)), nats"""
        ...

    def variance_rows(self, logits: F32, values: F32, temperature: float, /) -> F32:
        """-> (T,) variance of values under softmax(logits / temperature)"""
        ...

    def quantize_row(self, x: F32, out: I8, /) -> tuple[float, float]:
        """Out (d,) int8 = round(x / scale), scale = max|x| / 127; -> (scale, x.x)"""
        ...

    def dequantize_rows(self, codes: I8, scales: F32, /) -> F32:
        """(n, d) int8, (n,) -> (n, d)"""
        ...

    def scores(self, C: F32, q: F32, /) -> F32:
        """(m, d), (d,) -> (m,) dot products"""
        ...

    def cosine_topk(self, C: F32, q: F32, k: int, /) -> tuple[I64, F32]:
        """Rows of C are unit vectors -> (indices, cosines) of the k best, best first; |q| = 0 gives cosines 0."""
        ...

    def kmeans_step(self, X: F32, weights: F32, scores: F32, sums: F32, counts: F32, /) -> float:
        """One accumulation of spherical k-means: row i goes to argmax scores[i]; sums (k, d) and counts (k,) gain
        its weight in place; -> sum of weights * best score.
        """
        ...
