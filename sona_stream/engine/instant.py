"""The instant loop: what one finished trajectory does to the micro-LoRA.

    push(x) = mean_s A_s (a_s - out(x))         towards activations that did well, away from those that did badly

x is the query, or the mean activation where queries have another size. A step that carries a target is trained at
its own activations, push(a) = target - out(a); one that carries a gradient, push(a) = -gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config.engine import SonaConfig
from ..kernels import Kernels
from .arrays import F32
from .micro import MicroLora

__all__ = ["InstantLoop", "Lesson", "lesson_of"]


class Lesson:
    """Inputs, where their outputs should go, and how strongly (rms advantage), of one trajectory."""

    __slots__ = ("X", "push", "strength")

    def __init__(self, X: F32, push: F32, strength: float) -> None:
        self.X, self.push, self.strength = X, push, strength


def lesson_of(
    query: F32,
    activations: F32,
    extras: F32,
    kinds: Sequence[int] | NDArray[Any],
    advantages: NDArray[np.float32],
    served: tuple[F32, F32],
    config: SonaConfig,
    kernels: Kernels,
) -> Lesson | None:
    """Query (e,), activations and extras (S, d), kinds and advantages (S,) -> the lesson, or None without steps."""
    same = config.embedding_dim == config.hidden_dim
    if not any(kinds):
        return _judged_lesson(query if same else None, activations, advantages, served, kernels)
    inputs: list[F32] = []
    pushes: list[F32] = []
    squares: list[float] = []
    kind = np.asarray(kinds)
    judged = kind == 0
    if judged.any():
        part = _judged_lesson(query if same else None, activations[judged], advantages[judged], served, kernels)
        assert part is not None
        inputs.append(part.X[0])
        pushes.append(part.push[0])
        squares.append(part.strength**2)
    for s in np.flatnonzero(~judged):
        x = activations[s]
        push = -extras[s] if kind[s] == 2 else extras[s] - kernels.lora_row(x, *served)[0]
        inputs.append(x)
        pushes.append(push)
        squares.append(_demonstration_strength(x, push, kind[s], config.micro_lora_lr) ** 2)
    X = np.ascontiguousarray(np.stack(inputs), dtype=np.float32)
    push_rows = np.ascontiguousarray(np.stack(pushes), dtype=np.float32)
    return Lesson(X, push_rows, math.sqrt(sum(squares) / len(squares)))


def _judged_lesson(
    query: F32 | None, activations: F32, advantages: NDArray[np.float32], served: tuple[F32, F32], kernels: Kernels
) -> Lesson | None:
    """One row: what rewards alone say of the steps."""
    if not len(advantages):
        return None
    x = query if query is not None else activations.mean(axis=0)
    weights = np.ascontiguousarray(advantages)
    push = np.empty((1, len(x)), np.float32)
    kernels.micro_push(x, activations, weights, *served, push[0])
    return Lesson(x[None], push, math.sqrt(float(weights @ weights) / len(weights)))


def _demonstration_strength(x: F32, push: F32, kind: int, lr: float) -> float:
    """A target is never overshot: the step fades within one learning rate of it."""
    size, scale = float(np.linalg.norm(push)), float(np.linalg.norm(x))
    if size == 0 or scale == 0:
        return 0.0
    return 1.0 if kind == 2 or lr == 0 else min(1.0, size / scale / lr)


class InstantLoop:
    """Gathers lessons and steps the micro-LoRA every `flush_threshold` trajectories."""

    def __init__(self, config: SonaConfig, micro: MicroLora) -> None:
        self._threshold = config.flush_threshold
        self._micro = micro
        self._waiting: list[Lesson] = []

    def learn(self, lesson: Lesson) -> None:
        """Take one trajectory in; steps when enough wait."""
        self._waiting.append(lesson)
        if len(self._waiting) >= self._threshold:
            self.flush()

    def flush(self) -> int:
        """Step with what waits; -> how many trajectories it held."""
        waiting, self._waiting = self._waiting, []
        if len(waiting) == 1:
            lesson = waiting[0]
            self._micro.step(lesson.X, lesson.push, lesson.strength)
        elif waiting:
            X = np.concatenate([lesson.X for lesson in waiting])
            push = np.concatenate([lesson.push for lesson in waiting])
            strength = math.sqrt(sum(lesson.strength**2 for lesson in waiting) / len(waiting))
            self._micro.step(X, push, strength, len(waiting))
        return len(waiting)
