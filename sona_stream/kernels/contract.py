"""What both implementations of the kernels offer."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["BROKEN", "FLAT", "MOVED", "UNTOUCHED", "Kernels"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I8 = NDArray[np.int8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

UNTOUCHED, FLAT, MOVED, BROKEN = 0, 1, 2, 3
"""What a micro_step came to: inputs all zero or not finite, nothing changed; no direction to move in; new factors
are in the outputs; something is no longer finite, the moments are spoilt."""


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

    def dequantize_row(self, codes: I8, scale: float, out: F32, /) -> None:
        """Out (d,) = scale * codes (d,) int8"""
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

    def micro_push(self, x: F32, activations: F32, weights: F32, A: F32, Bt: F32, out: F32, /) -> None:
        """Out (d,) = mean over s of weights[s] (activations[s] - (x + (A x) Bt)); (S, d), (S,)"""
        ...

    def micro_step(
        self,
        X: F32,
        push: F32,
        A: F32,
        Bt: F32,
        mean_A: F32,
        mean_Bt: F32,
        seen: F64,
        guard: F64,
        running: F64,
        rates: F64,
        length: float,
        max_ratio: float,
        first: bool,
        out_A: F32,
        out_Bt: F32,
        /,
    ) -> int:
        """One step of the micro-LoRA (r = 1 or 2) that moves the outputs of X (n, d) along push (n, d).

        In place: the means of the factors' scaled gradients (r, d); ``seen`` (r, r), the running second moment of
        A x; ``running`` (3,): the factors' mean squared gradients, and the typical change of the outputs that an
        unscaled step predicts. ``guard`` (r, r) is added to ``seen`` where Bt is concerned. ``rates`` (4,): of the
        means, of the squares, of ``seen``, and the damping of both metrics in shares of their traces. The step is
        ``length`` over that typical change; rms |delta| / |x| over X stays within ``max_ratio``. ``first``:
        ``seen`` starts here. -> UNTOUCHED, FLAT, MOVED or BROKEN; out_A, out_Bt (r, d) count after MOVED only.
        """
        ...

    def closest(self, C: F32, q: F32, out: F64, /) -> int:
        """(m, d), m >= 1, (d,): out (m,) = C q; -> the first place of its greatest"""
        ...

    def blend(self, C: F32, i: int, a: float, v: F32, b: float, gram: F64, products: F64, /) -> float:
        """Row i of C (room, d) becomes (a C_i + b v) / its norm, unless that is 0; -> the norm.

        ``products`` (m,): v with the first m rows. ``gram`` (g, g) follows where m <= g, its diagonal excepted.
        """
        ...

    def cheapest_merge(
        self, gram: F64, weights: F64, lengths: F64, cosines: F64, unit: float, /
    ) -> tuple[int, int]:
        """The pair i < j of m clusters that costs least to merge in Ward's sense (increase of squared distances).

        (-1, -1) when a stranger, a point of weight 1 with these cosines (m,), costs less to join to one of them.
        Weights (m,) are in units of ``unit``, lengths (m,) mean resultant lengths; gram (g, g), m <= g, holds the
        centroids' products.
        """
        ...

    def attention_weight(self, weights: F64, /) -> float:
        """(n,) -> 1 - entropy of |weights| / (2 log n), in [0.5, 1]; 1 for n < 2 or a zero sum.

        NaN where a weight or their sum is not finite.
        """
        ...

    def nearest_in_list(
        self, codes: I8, inverse: F32, following: I32, head: int, q: I8, inverse_q: float, least: float, k: int, /
    ) -> tuple[I64, F32]:
        """The rows nearest to q among those of one linked list: head, following[head], ... up to a negative one.

        codes (n, e) int8 with the inverse lengths (n,), q (e,) with its own. -> (rows, cosines): at most k with
        cosine >= least, best first, of equals the one met first. Rows of other lists are not read.
        """
        ...
