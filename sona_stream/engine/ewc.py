"""Elastic weight consolidation in function space (after Kirkpatrick et al. 2017, https://arxiv.org/abs/1612.00796).

A task is a stretch of inputs with a common distribution. When a block of inputs lies clearly elsewhere than the
task so far, the task is consolidated: a reservoir R_k of its inputs and the weights M_k from before the block are
kept, and from then on

    ewc_lambda / 1000 * sum_k mean over R_k of |(M - M_k) x|^2 / 2

holds both adapters to what they did there. Keeping functions, not parameters, does not care how (A, B) are rotated
when the background cycle refactors them. A known task that returns is resumed, not counted again.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import Kernels
from .arrays import F32
from .micro import MicroLora
from .pool import VectorPool

__all__ = ["Task", "TaskMemory", "Weights"]

Weights = tuple[F32, F32]
"""(A (k, d), Bt (k, d)): M x = Btᵀ A x"""

_BLOCK = 32
_RESERVOIR = 64
_MIN_INPUTS = 64
_MAX_TASKS = 8
_Z_LIMIT, _DROP_LIMIT = 6.0, 0.15
_PULL = 10.0
_GUARD = 10.0
_SAMPLE = 4


@dataclasses.dataclass(slots=True, eq=False)
class Task:
    """Statistics of its inputs, a reservoir of them, and the weights it left behind (once consolidated)."""

    mean: F32
    """(d,) running mean of unit inputs, not normalised"""
    count: int = 0
    cosine: float = 0.0
    """mean cosine of an input to `mean`"""
    variance: float = 0.0
    slots: list[int] = dataclasses.field(default_factory=list)
    micro: Weights | None = None
    base: dict[int, Weights] = dataclasses.field(default_factory=dict)


class TaskMemory:
    """Finds task boundaries and pulls the micro-LoRA back to earlier tasks. Guarded by the engine's lock."""

    def __init__(self, dim: int, strength: float, lr: float, kernels: Kernels, seed: int) -> None:
        self._pull_rate = min(0.5, _PULL * lr * strength / 1000.0)
        self.penalty = strength / 1000.0
        self._kernels = kernels
        self._random = np.random.default_rng(seed)
        self.pool = VectorPool(dim, kernels)
        self.current = Task(np.zeros(dim, np.float32))
        self.done: list[Task] = []
        self.tasks = 0
        """tasks ever consolidated (`ewc_tasks`)"""
        self._block: list[int] = []
        self._suspect: list[int] = []
        self._before: tuple[Weights, dict[int, Weights]] | None = None

    def observe(self, x: F32, served: Weights, base: dict[int, Weights]) -> None:
        """One input (d,) of the micro-LoRA, and the weights as they are now."""
        if self._before is None:
            self._before = (served, dict(base))
        slot, square = self.pool.put(x)
        if not 0.0 < square < math.inf:
            self.pool.free(slot)
            return
        self._block.append(slot)
        if len(self._block) == _BLOCK and self._judge():
            self._before = (served, dict(base))

    def pull(self, micro: MicroLora, x: F32) -> None:
        """One step of the micro-LoRA back towards what each earlier task had, on a sample of its inputs; and the
        directions those inputs use, for its next own step to avoid.
        """
        if self._pull_rate == 0 or not self.done:
            return
        guard = np.zeros_like(micro.guard)
        for task in self.done:
            if task is self.current or task.micro is None or not task.slots:
                continue
            chosen = self._random.choice(len(task.slots), min(_SAMPLE, len(task.slots)), replace=False)
            X = self.pool.get([task.slots[i] for i in chosen])
            gap = (X @ micro.A.T) @ micro.Bt - (X @ task.micro[0].T) @ task.micro[1]
            A, Bt = _corrected(micro.A, micro.Bt, X, gap, micro.A @ x, self._pull_rate)
            micro.replace(A, Bt, X)
            Z = X @ micro.A.T
            guard += _GUARD * self.penalty * (Z.T @ Z) / len(X)
        micro.guard += 0.1 * (guard - micro.guard)

    def held(self, group: int) -> list[tuple[F32, Weights]]:
        """For the base adapter `group`: (inputs (m, d), weights then) of every earlier task."""
        return [
            (self.pool.get(task.slots[:16]), task.base[group])
            for task in self.done
            if task is not self.current and task.slots and group in task.base
        ]

    def _judge(self) -> bool:
        """A full block: does it belong to the current task, to an earlier one, or to a new one? -> whether settled

        One strange block may be a burst, or straddle the boundary; only a second one in a row is a switch.
        """
        block, self._block = self._block, []
        U = self.pool.get(block)
        U /= np.sqrt(np.einsum("ij,ij->i", U, U))[:, None]
        strange = not self._belongs(U, self.current)
        if strange and not self._suspect:
            self._suspect = block
            return False
        for slot in self._suspect:
            self.pool.free(slot)
        self._suspect = []
        if strange:
            self._consolidate()
            known = [task for task in self.done if self._belongs(U, task)]
            self.current = known[0] if known else Task(np.zeros(U.shape[1], np.float32))
        self._absorb(self.current, U, block)
        return True

    @staticmethod
    def _belongs(U: F32, task: Task) -> bool:
        norm = float(np.linalg.norm(task.mean))
        if task.count < _MIN_INPUTS or norm == 0.0:
            return True
        cosine = float((U @ task.mean).mean()) / norm
        drop = task.cosine - cosine
        error = math.sqrt(max(task.variance, 1e-6) / len(U))
        return not (drop > _DROP_LIMIT and drop / error > _Z_LIMIT)

    def _consolidate(self) -> None:
        assert self._before is not None
        task = self.current
        task.micro, task.base = self._before
        if task in self.done:
            return
        self.tasks += 1
        self.done.append(task)
        if len(self.done) > _MAX_TASKS:
            for slot in self.done.pop(0).slots:
                self.pool.free(slot)

    def _absorb(self, task: Task, U: F32, block: list[int]) -> None:
        cosines = _outside_cosines(task, U)
        share = np.float32(max(len(U) / (task.count + len(U)), 0.02))
        task.variance += float(share) * (float(((cosines - task.cosine) ** 2).mean()) - task.variance)
        task.cosine += float(share) * (float(cosines.mean()) - task.cosine)
        if task.count == 0:
            task.variance = float(cosines.var())
        task.mean += share * (U.mean(axis=0) - task.mean)
        self._reservoir(task, block)

    def _reservoir(self, task: Task, block: list[int]) -> None:
        """Every input so far has the same chance to be among the kept ones."""
        room = _RESERVOIR - len(task.slots)
        task.slots += block[:room]
        late = block[room:]
        counts = np.arange(task.count + len(block) - len(late), task.count + len(block)) + 1
        for slot, at in zip(late, self._random.integers(counts).tolist(), strict=True):
            kept = at < _RESERVOIR
            self.pool.free(task.slots[at] if kept else slot)
            if kept:
                task.slots[at] = slot
        task.count += len(block)


def _outside_cosines(task: Task, U: F32) -> NDArray[np.float64]:
    """(n, d) -> (n,) cosine of each input to the mean of inputs it is not itself part of"""
    if task.count:
        return np.asarray(U @ task.mean / max(float(np.linalg.norm(task.mean)), 1e-30), dtype=np.float64)
    others = (U.sum(axis=0) - U) / np.float32(len(U) - 1)
    norms = np.linalg.norm(others, axis=-1)
    return np.asarray((U * others).sum(axis=1) / np.maximum(norms, 1e-30), dtype=np.float64)


def _corrected(A: F32, Bt: F32, X: F32, gap: NDArray[np.floating[Any]], z_now: F32, rate: float) -> Weights:
    """Weights whose outputs on X (m, d) lie `rate` of `gap` (m, d) nearer: half of it through each factor, both by
    damped least squares. The damping knows the size of A x on present inputs, so that inputs the adapter no longer
    sees cannot demand huge factors.
    """
    rank, half = len(A), np.float32(rate / 2)
    Z = X @ A.T
    damp = 0.1 * float(z_now @ z_now) / rank + 0.01 * float(np.vdot(Z, Z)) / rank + 1e-12
    to_Bt = np.linalg.solve(Z.T @ Z / len(X) + damp * np.eye(rank), Z.T @ gap / len(X))
    gram_B = Bt @ Bt.T
    damp_B = 0.1 * float(np.trace(gram_B)) / rank + 1e-12
    gram_X = X @ X.T
    damp_X = 0.1 * float(np.trace(gram_X)) / len(X) + 1e-12
    inner = np.linalg.solve(gram_B + damp_B * np.eye(rank), Bt @ gap.T)
    to_A = inner @ np.linalg.solve(gram_X + damp_X * np.eye(len(X)), X)
    return (A - half * to_A).astype(np.float32), (Bt - half * to_Bt).astype(np.float32)
