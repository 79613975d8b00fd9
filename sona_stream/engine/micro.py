"""The micro-LoRA: rank 1 or 2, one small step after every trajectory.

    out(x) = x + B A x          both factors are trained; B = 0 at birth, so out(x) = x

One row of A starts along the first inputs, x̄ / |x̄|², so that one rank can push all of them the same way; the
other starts small and random. A step follows Adam's direction (https://arxiv.org/abs/1412.6980), scaled so that the
rms of |Δout(x)| / |x| over the batch is at most `micro_lora_lr` a trajectory, times the strength of the signal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..kernels import Kernels
from .arrays import F32

__all__ = ["MicroLora", "frozen"]

_BETA1, _BETA2 = 0.95, 0.99
_MIN_STRENGTH = 1e-3


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
        self._moments = {name: np.zeros((rank, dim), np.float32) for name in ("mA", "vA", "mBt", "vBt")}
        self.born = False
        self.steps = 0
        self.rejected = 0
        self._typical = 0.0
        self.served: tuple[F32, F32] = (frozen(self.A), frozen(self.Bt))

    def step(self, X: F32, push: F32, strength: float, trajectories: int = 1) -> bool:
        """X (n, d) inputs, push (n, d) where outputs should go, strength rms |advantage|; -> whether it moved.

        The predicted relative change of the outputs is at most lr * trajectories * min(1, strength).
        """
        if self._lr == 0 or strength < _MIN_STRENGTH:
            return False
        if not self.born:
            self._birth(X)
        self.steps += 1
        grad_A, grad_Bt = self._kernels.lora_gradients(push, X, self.A, self.Bt)
        correction = 1 - _BETA2**self.steps
        m = self._moments
        to_A = self._kernels.adam_direction(grad_A, m["mA"], m["vA"], _BETA1, _BETA2, correction)
        to_Bt = self._kernels.adam_direction(grad_Bt, m["mBt"], m["vBt"], _BETA1, _BETA2, correction)
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
        for moment in self._moments.values():
            moment[...] = 0
        return False

    def state(self) -> tuple[dict[str, F32], dict[str, float]]:
        """For snapshots: arrays by name, numbers by name."""
        arrays = {"A": self.A, "Bt": self.Bt, **self._moments}
        numbers = {
            "steps": self.steps,
            "typical": self._typical,
            "born": float(self.born),
            "rejected": self.rejected,
        }
        return arrays, numbers

    def restore(self, arrays: Mapping[str, F32], numbers: Mapping[str, float]) -> None:
        """Back from `state`."""
        self.A, self.Bt = np.array(arrays["A"]), np.array(arrays["Bt"])
        self._moments = {name: np.array(arrays[name]) for name in self._moments}
        self.steps, self.rejected = int(numbers["steps"]), int(numbers["rejected"])
        self._typical, self.born = float(numbers["typical"]), bool(numbers["born"])
        self.served = (frozen(self.A), frozen(self.Bt))
