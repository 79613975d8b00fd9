"""The base LoRA: what the background cycle makes of many trajectories, at rank `base_lora_rank`.

In one cycle M (of one layer) goes to the best rank-R approximation of

    M + f (M_micro - M) + D

f = 1 - exp(-10 base_lora_lr n) pulls it towards the micro-LoRA (n trajectories); D moves the mean input of each
pattern by base_lora_lr a trajectory in the pattern's mean direction of improvement, which averages out far more
noise than single steps can. Then it is pulled back to what earlier tasks had on their inputs (`ewc`), and cut.
"Best" means in the outputs for inputs as they come: the SVD is of M C^(1/2), C = E[x xᵀ]. A plain SVD would drop
exactly the direction that acts as a bias. The micro-LoRA keeps serving: a caller who applies only that one must not
lose at each cycle what was learned.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from .arrays import F32
from .ewc import Weights
from .micro import frozen

__all__ = ["BaseLora", "Evidence", "truncated"]

_PULL = 10.0
_MAX_MOVE = 0.25


@dataclasses.dataclass(slots=True)
class Evidence:
    """What one cycle's trajectories say, by pattern."""

    inputs: F32
    """(p, d) sum of inputs"""
    pushes: F32
    """(p, d) sum of unit pushes times strength"""
    counts: F32
    """(p,)"""
    samples: F32
    """(m, d) inputs as they came, for C"""


class BaseLora:
    """One pair of factors for all layers, and one for each layer that has had steps of its own."""

    def __init__(self, dim: int, rank: int, lr: float, max_delta_ratio: float) -> None:
        self._rank, self._lr, self._max_ratio = rank, lr, max_delta_ratio
        self.groups: dict[int, Weights] = {-1: (frozen(np.zeros((1, dim), np.float32)),) * 2}
        """layer -> weights; -1: every layer without steps of its own. Replaced, never changed in place."""
        self.used: set[int] = set()
        self.updates = 0

    def of(self, layer: int) -> Weights:
        """The weights that this layer applies; the layer exists from now on."""
        self.used.add(layer)
        groups = self.groups
        return groups.get(layer, groups[-1])

    def consolidated(
        self, group: int, micro: Weights, evidence: Evidence, held: list[tuple[F32, Weights]], penalty: float
    ) -> Weights | None:
        """The weights after one cycle; None when nothing would move."""
        n = float(evidence.counts.sum())
        if self._lr == 0 or n == 0 or not len(evidence.samples):
            return None
        A, Bt = self.groups.get(group, self.groups[-1])
        part = np.float32(1.0 - math.exp(-_PULL * self._lr * n))
        X, moves = self._moves(evidence)
        stack_A = [A, micro[0], X]
        stack_Bt = [(1 - part) * Bt, part * micro[1], _interpolating(X, moves)]
        for inputs, then in held:
            now = sum((inputs @ a.T) @ b for a, b in zip(stack_A, stack_Bt, strict=True))
            gap = now - (inputs @ then[0].T) @ then[1]
            stack_A.append(inputs)
            stack_Bt.append(_interpolating(inputs, np.float32(-penalty / (1 + penalty)) * gap))
        weights = truncated(np.concatenate(stack_A), np.concatenate(stack_Bt), evidence.samples, self._rank)
        return self._bounded(weights, evidence.samples)

    def _moves(self, evidence: Evidence) -> tuple[F32, F32]:
        """-> mean inputs (p, d) and how far their outputs should move (p, d)"""
        seen = evidence.counts > 0
        counts = evidence.counts[seen][:, None]
        X = evidence.inputs[seen] / counts
        total = evidence.pushes[seen]
        size = np.linalg.norm(total, axis=1, keepdims=True)
        # |sum of n unit vectors|² is n for noise, n² for agreement: the share of agreement, and how sure it is.
        share = np.clip((size**2 / counts - 1) / np.maximum(counts - 1, 1), 0.0, 1.0)
        sure = counts * share / (counts * share + 1)
        reach = np.minimum(self._lr * counts, _MAX_MOVE) * sure * np.linalg.norm(X, axis=1, keepdims=True)
        return X, np.asarray(total / np.maximum(size, 1e-30) * reach, dtype=np.float32)

    def _bounded(self, weights: Weights, samples: F32) -> Weights | None:
        A, Bt = weights
        change = (samples @ A.T) @ Bt
        ratio = math.sqrt(float(np.vdot(change, change)) / max(float(np.vdot(samples, samples)), 1e-30))
        if not (math.isfinite(ratio) and np.isfinite(A).all() and np.isfinite(Bt).all()):
            return None
        if ratio > self._max_ratio:
            Bt = Bt * np.float32(self._max_ratio / ratio)
        return frozen(A), frozen(Bt)


def _interpolating(X: F32, values: F32) -> F32:
    """Bt (m, d) such that, with A = X (m, d), the outputs on X are `values` (m, d), damped by 1 %."""
    gram = (X @ X.T).astype(np.float64)
    damp = 0.01 * np.trace(gram) / len(X) + 1e-12
    return np.asarray(np.linalg.solve(gram + damp * np.eye(len(X)), values), dtype=np.float32)


def truncated(A: F32, Bt: F32, samples: F32, rank: int) -> Weights:
    """M = Btᵀ A with factors (k, d) -> factors (<= rank, d) of the best approximation to M on `samples` (m, d).

    M C Mᵀ = Btᵀ (A C Aᵀ) Bt has the same left singular vectors as M C^(1/2); with K = A C Aᵀ = L Lᵀ they come from
    the small matrix Lᵀ Bt Btᵀ L. Then M' = U Uᵀ M.
    """
    Z = (samples @ A.T).astype(np.float64)
    scale = float(np.vdot(samples, samples)) / samples.size
    K = Z.T @ Z / len(samples) + 1e-3 * scale * (A @ A.T)
    values, vectors = np.linalg.eigh(K)
    L = vectors * np.sqrt(np.maximum(values, 0.0))
    F = L.T @ Bt
    spread, directions = np.linalg.eigh(F @ F.T)
    order = np.argsort(spread)[::-1][:rank]
    order = order[spread[order] > 1e-10 * max(float(spread[order[0]]), 1e-30)]
    if not len(order):
        return A[:1] * 0, Bt[:1] * 0
    U = (directions[:, order] / np.sqrt(spread[order])).T @ F
    return np.asarray((U @ Bt.T) @ A, dtype=np.float32), np.asarray(U, dtype=np.float32)
