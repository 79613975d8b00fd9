"""The micro-LoRA: rank 1 or 2, one small step after every trajectory.

    out(x) = x + B A x          both factors are trained; B = 0 at birth, so out(x) = x

One row of A starts along the first inputs, x̄ / |x̄|², so that one rank can push all of them the same way; the
other starts small and random. A step follows the scaled gradient (each factor's gradient times the inverse second
moment of the other side; Zhang & Pilanci 2024, https://arxiv.org/abs/2402.02347), which uses both ranks however A
and B share their size, with momentum, each factor divided by the running rms of its gradient as in Adam. Its length
is set so that the rms of |Δout(x)| / |x| over the batch is at most `micro_lora_lr` a trajectory, times the strength
of the signal. (Adam alone, element by element, left the second rank nearly unused: measured .20 against .92.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import Kernels
from .arrays import F32

__all__ = ["MicroLora", "frozen"]

_BETA1, _BETA2 = 0.98, 0.99
_SEEN = 0.02
"""Share of the newest batch in the running second moment of A x."""
_DAMP = 1e-3
_MIN_STRENGTH = 1e-3

F64 = NDArray[np.float64]


def frozen(array: F32) -> F32:
    """A private read-only copy: what `apply_*` reads on other threads never changes under them."""
    copy = np.array(array, dtype=np.float32, order="C")
    copy.setflags(write=False)
    return copy


class MicroLora:
    """Weights and moments. `served` is an immutable snapshot, replaced as a whole after each accepted step."""

    def __init__(self, dim: int, rank: int, lr: float, max_delta_ratio: float, kernels: Kernels, seed: int) -> None:
        self._kernels = kernels
        self._lr = lr
        self._max_ratio = max_delta_ratio
        self._random = np.random.default_rng(seed)
        self.A = np.zeros((rank, dim), np.float32)
        self.Bt = np.zeros((rank, dim), np.float32)
        self._mean_A = np.zeros((rank, dim), np.float32)
        self._mean_Bt = np.zeros((rank, dim), np.float32)
        self._square_A = 0.0
        self._square_Bt = 0.0
        self._seen: F64 = np.zeros((rank, rank))
        self.guard: F64 = np.zeros((rank, rank))
        """second moment of A x on inputs of earlier tasks, times its weight: steps avoid those directions of Bt"""
        self.born = False
        self.steps = 0
        self.rejected = 0
        self._typical = 0.0
        self.served: tuple[F32, F32] = (frozen(self.A), frozen(self.Bt))

    def step(self, X: F32, push: F32, strength: float, trajectories: int = 1) -> bool:
        """X (n, d) inputs, push (n, d) where outputs should go, strength rms |advantage|; -> whether it moved.

        The predicted relative change of the outputs is at most lr * trajectories * min(1, strength).
        """
        if self._lr == 0 or strength < _MIN_STRENGTH or not 0.0 < float(np.vdot(X, X)) < math.inf:
            return False
        if not self.born:
            self._birth(X)
        self.steps += 1
        to_A, to_Bt = self._direction(X, push)
        change = (X @ self.A.T) @ to_Bt + (X @ to_A.T) @ self.Bt
        size = math.sqrt(float(np.vdot(change, change)) / max(float(np.vdot(X, X)), 1e-30))
        if not math.isfinite(size):
            return self._reject()
        # A batch that happens to lie where the direction is flat must not license a long step elsewhere.
        self._typical = max(size, 0.9 * self._typical + 0.1 * size)
        if self._typical <= 0:
            return False
        scale = np.float32(min(self._lr * trajectories, self._max_ratio) * min(1.0, strength) / self._typical)
        return self._accept(self.A + scale * to_A, self.Bt + scale * to_Bt, X)

    def _direction(self, X: F32, push: F32) -> tuple[F32, F32]:
        """-> dA (r, d), dBt (r, d), of no particular length"""
        grad_A, grad_Bt = self._kernels.lora_gradients(push, X, self.A, self.Bt)
        rank, size = len(self.A), float(np.vdot(X, X)) / len(X)
        unit = np.eye(rank)
        Z = (X @ self.A.T).astype(np.float64)
        moment = Z.T @ Z / len(X)
        self._seen += (1.0 if self.steps == 1 else _SEEN) * (moment - self._seen)
        if self.steps == 1:
            self._seen += 0.1 * np.trace(moment) / rank * unit
        gram = (self.Bt @ self.Bt.T).astype(np.float64)
        for_Bt = _inverse(self._seen + self.guard + (_DAMP * np.trace(self._seen) / rank + 1e-12) * unit)
        for_A = _inverse(gram + (_DAMP * np.trace(gram) / rank + 1e-4 * size) * unit)
        grad_Bt = for_Bt.astype(np.float32) @ grad_Bt
        grad_A = for_A.astype(np.float32) @ grad_A / np.float32(size)
        self._mean_A += np.float32(1 - _BETA1) * (grad_A - self._mean_A)
        self._mean_Bt += np.float32(1 - _BETA1) * (grad_Bt - self._mean_Bt)
        self._square_A += (1 - _BETA2) * (float(np.vdot(grad_A, grad_A)) / grad_A.size - self._square_A)
        self._square_Bt += (1 - _BETA2) * (float(np.vdot(grad_Bt, grad_Bt)) / grad_Bt.size - self._square_Bt)
        return _scaled(self._mean_A, self._square_A), _scaled(self._mean_Bt, self._square_Bt)

    def replace(self, A: F32, Bt: F32, X: F32) -> bool:
        """Take other weights (the EWC pull) under the same checks; moments stay."""
        return self._accept(A, Bt, X)

    def _birth(self, X: F32) -> None:
        mean = X.mean(axis=0)
        square = float(mean @ mean)
        if square < 0.01 * float(np.vdot(X, X)) / len(X):
            mean, square = X[0], float(X[0] @ X[0])
        if square <= 0:
            return
        rank, dim = self.A.shape
        noise = self._random.standard_normal((rank, dim)).astype(np.float32)
        self.A = noise / np.float32(math.sqrt(square * dim))
        self.A[0] = mean / np.float32(square)
        self.born = True

    def _accept(self, A: F32, Bt: F32, X: F32) -> bool:
        change = (X @ A.T) @ Bt
        ratio = math.sqrt(float(np.vdot(change, change)) / max(float(np.vdot(X, X)), 1e-30))
        if ratio > self._max_ratio:
            Bt = Bt * np.float32(self._max_ratio / ratio)
        if not (math.isfinite(ratio) and np.isfinite(A).all() and np.isfinite(Bt).all()):
            return self._reject()
        self.A, self.Bt = A, Bt
        self.served = (frozen(A), frozen(Bt))
        return True

    def _reject(self) -> bool:
        self.rejected += 1
        self._mean_A[...] = 0
        self._mean_Bt[...] = 0
        self._square_A = self._square_Bt = 0.0
        return False

    def state(self) -> tuple[dict[str, F32], dict[str, Any]]:
        """For snapshots: arrays by name, numbers by name."""
        arrays = {"A": self.A, "Bt": self.Bt, "mean_A": self._mean_A, "mean_Bt": self._mean_Bt}
        numbers = {
            "steps": self.steps,
            "rejected": self.rejected,
            "born": self.born,
            "typical": self._typical,
            "squares": [self._square_A, self._square_Bt],
            "seen": self._seen.tolist(),
            "guard": self.guard.tolist(),
            "random": self._random.bit_generator.state,
        }
        return arrays, numbers

    def restore(self, arrays: Mapping[str, F32], numbers: Mapping[str, Any]) -> None:
        """Back from `state`."""
        self.A, self.Bt = np.array(arrays["A"]), np.array(arrays["Bt"])
        self._mean_A, self._mean_Bt = np.array(arrays["mean_A"]), np.array(arrays["mean_Bt"])
        self._square_A, self._square_Bt = numbers["squares"]
        self._seen, self.guard = np.array(numbers["seen"]), np.array(numbers["guard"])
        self.steps, self.rejected, self.born = numbers["steps"], numbers["rejected"], numbers["born"]
        self._typical = numbers["typical"]
        self._random.bit_generator.state = numbers["random"]
        self.served = (frozen(self.A), frozen(self.Bt))


def _scaled(mean: F32, square: float) -> F32:
    return mean / np.float32(math.sqrt(square)) if square > 0 else np.zeros_like(mean)


def _inverse(matrix: F64) -> F64:
    """Of a positive definite (1, 1) or (2, 2); ten times quicker than LAPACK at these sizes."""
    if len(matrix) == 1:
        return np.asarray(1.0 / matrix)
    (a, b), (c, d) = matrix.tolist()
    return np.asarray(np.array([[d, -b], [-c, a]]) / (a * d - b * c))
