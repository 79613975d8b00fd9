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

from ..kernels import BROKEN, MOVED, UNTOUCHED, Kernels
from .arrays import F32

__all__ = ["MicroLora", "frozen"]

_RATES = np.array([0.02, 0.01, 0.02, 1e-3])
"""Share of the newest batch in the mean gradients, in their mean squares, in the moment of A x; and the damping."""
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
        self._running: F64 = np.zeros(3)
        """mean square of either factor's scaled gradients, and the typical change of the outputs"""
        self._seen: F64 = np.zeros((rank, rank))
        self.guard: F64 = np.zeros((rank, rank))
        """second moment of A x on inputs of earlier tasks, times its weight: steps avoid those directions of Bt"""
        self.born = False
        self.steps = 0
        self.rejected = 0
        self.served: tuple[F32, F32] = (frozen(self.A), frozen(self.Bt))

    def step(self, X: F32, push: F32, strength: float, trajectories: int = 1) -> bool:
        """X (n, d) inputs, push (n, d) where outputs should go, strength rms |advantage|; -> whether it moved.

        The predicted relative change of the outputs is at most lr * trajectories * min(1, strength).
        """
        if self._lr == 0 or strength < _MIN_STRENGTH:
            return False
        if not self.born:
            if not 0.0 < float(np.vdot(X, X)) < math.inf:
                return False
            self._birth(X)
        A, Bt = np.empty_like(self.A), np.empty_like(self.Bt)
        # A batch that happens to lie where the direction is flat must not license a long step elsewhere: the length
        # is over the typical change.
        done = self._kernels.micro_step(
            X,
            push,
            self.A,
            self.Bt,
            self._mean_A,
            self._mean_Bt,
            self._seen,
            self.guard,
            self._running,
            _RATES,
            min(self._lr * trajectories, self._max_ratio) * min(1.0, strength),
            self._max_ratio,
            self.steps == 0,
            A,
            Bt,
        )
        self.steps += done != UNTOUCHED
        if done == MOVED:
            self._publish(A, Bt)
        elif done == BROKEN:
            self._reject()
        return done == MOVED

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
        self._publish(np.array(A), np.array(Bt))
        return True

    def _publish(self, A: F32, Bt: F32) -> None:
        """These arrays are never written to again."""
        A.setflags(write=False)
        Bt.setflags(write=False)
        self.A, self.Bt = self.served = (A, Bt)

    def _reject(self) -> bool:
        self.rejected += 1
        self._mean_A[...] = 0
        self._mean_Bt[...] = 0
        self._running[:2] = 0.0
        return False

    def state(self) -> tuple[dict[str, F32], dict[str, Any]]:
        """For snapshots: arrays by name, numbers by name."""
        arrays = {"A": self.A, "Bt": self.Bt, "mean_A": self._mean_A, "mean_Bt": self._mean_Bt}
        numbers = {
            "steps": self.steps,
            "rejected": self.rejected,
            "born": self.born,
            "typical": float(self._running[2]),
            "squares": self._running[:2].tolist(),
            "seen": self._seen.tolist(),
            "guard": self.guard.tolist(),
            "random": self._random.bit_generator.state,
        }
        return arrays, numbers

    def restore(self, arrays: Mapping[str, F32], numbers: Mapping[str, Any]) -> None:
        """Back from `state`."""
        self.A, self.Bt = np.array(arrays["A"]), np.array(arrays["Bt"])
        self._mean_A, self._mean_Bt = np.array(arrays["mean_A"]), np.array(arrays["mean_Bt"])
        self._running = np.array([*numbers["squares"], numbers["typical"]], dtype=np.float64)
        self._seen, self.guard = np.array(numbers["seen"]), np.array(numbers["guard"])
        self.steps, self.rejected, self.born = numbers["steps"], numbers["rejected"], numbers["born"]
        self._random.bit_generator.state = numbers["random"]
        self.served = (frozen(self.A), frozen(self.Bt))
