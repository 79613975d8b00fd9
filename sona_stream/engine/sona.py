"""`SonaEngine`: the guide's engine in snake_case, usable alone from plain synchronous Python.

Thread-safety: every method may be called from any thread. `apply_*` reads an immutable snapshot and takes no lock;
recording and `find_patterns` take one lock for microseconds; a background cycle (`tick`, `force_learn`) works on
what it took out of the buffer and holds the lock only for short slices, so other threads are not held up by it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..config.engine import SonaConfig
from ..events import PATTERN_TYPES, PatternType
from ..kernels import load
from .arrays import F32, in_range, number, require_finite, rows, vector
from .background import Background
from .bank import PatternBank
from .base_lora import BaseLora
from .credit import attention_weight
from .ewc import TaskMemory
from .micro import MicroLora
from .pattern import LearnedPattern
from .recorder import Recorder
from .snapshot import decoded, encoded, gathered, restored, write_atomically
from .trajectories import StepKind

__all__ = ["SonaEngine"]

_F32 = np.dtype(np.float32)
_LARGEST = float(np.finfo(np.float32).max)


class SonaEngine:
    """Micro-LoRA, base LoRA, trajectories and patterns for vectors of `hidden_dim` (queries of `embedding_dim`)."""

    def __init__(self, hidden_dim: int, *, config: SonaConfig | None = None) -> None:
        """All defaults; `with_config` sets more. Raises ConfigError (a ValueError) when out of range."""
        self.config = config if config is not None else SonaConfig(hidden_dim=hidden_dim)
        c = self.config
        self._kernels = load(compiled=c.enable_simd)
        self._lora_row_into = self._kernels.lora_row_into
        self._shape = (c.hidden_dim,)
        self._lock = threading.Lock()
        self._enabled = True
        self._micro = MicroLora(
            c.hidden_dim, c.micro_lora_rank, c.micro_lora_lr, c.max_delta_ratio, self._kernels, c.seed
        )
        bank = PatternBank(
            c.embedding_dim, c.pattern_clusters, c.pattern_similarity, c.pattern_half_life, self._kernels
        )
        self._tasks = TaskMemory(c.hidden_dim, c.ewc_lambda, c.micro_lora_lr, self._kernels, c.seed)
        self._base = BaseLora(c.hidden_dim, c.base_lora_rank, c.base_lora_lr, c.max_delta_ratio)
        self._recorder = Recorder(c, self._kernels, bank, self._micro, self._tasks, self._base)
        self._background = Background(c, self._kernels, self._lock, self._recorder, self._tasks, self._base)

    @classmethod
    def with_config(cls, config: SonaConfig | Mapping[str, Any]) -> SonaEngine:
        """From a `SonaConfig`, or from a dict with the guide's camelCase or our snake_case keys."""
        chosen = config if isinstance(config, SonaConfig) else SonaConfig.from_dict(config)
        return cls(chosen.hidden_dim, config=chosen)

    # -- applying ------------------------------------------------------------------------------------------------

    def apply_micro_lora(self, x: ArrayLike) -> F32:
        """(d,) or (n, d) -> a new float32 array of the same shape: x + delta.

        Raises ValueError on another shape, NaN or infinity.
        """
        A, Bt = self._micro.served
        # The straight path of a float32 vector; everything else, and every doubt, goes the long way round.
        if (
            type(x) is np.ndarray
            and x.dtype == _F32
            and x.shape == self._shape
            and x.flags.carray
            and self._enabled
        ):
            out: F32 = np.empty(self._shape, _F32)
            if self._lora_row_into(x, A, Bt, out) <= _LARGEST:
                return out
        return self._apply(x, A, Bt)

    def apply_base_lora(self, layer: int, x: ArrayLike) -> F32:
        """The slow adapter of one layer: (d,) or (n, d) -> x + delta. Layers are created on use."""
        return self._apply(x, *self._base.of(_layer(layer)))

    def _apply(self, x: ArrayLike, A: F32, Bt: F32) -> F32:
        array = rows(x, self.config.hidden_dim, "x")
        if not self._enabled:
            require_finite(array, "x")
            return array.copy()
        out: F32 = np.empty(array.shape, _F32)
        into = self._lora_row_into if array.ndim == 1 else self._kernels.lora_batch_into
        square = into(array, A, Bt, out)
        if not square <= _LARGEST:
            require_finite(array, "x")
            if not np.isfinite(out).all():
                raise ValueError("x is too large: the adapted vector does not fit float32")
        return out

    # -- trajectories --------------------------------------------------------------------------------------------

    def begin_trajectory(self, query: ArrayLike) -> int:
        """Query embedding (e,) -> an id, unique in this process."""
        q = vector(query, self.config.embedding_dim, "query")
        with self._lock:
            return self._recorder.begin(q)

    def add_trajectory_step(
        self,
        tid: int,
        activations: ArrayLike,
        attention_weights: ArrayLike | None,
        reward: float,
        *,
        target: ArrayLike | None = None,
        grad: ArrayLike | None = None,
        layer: int | None = None,
    ) -> None:
        """One step: activations (d,), attention weights (any length, may be empty), reward (any finite number).

        With `target` (d,): what the adapter should have made of these activations; with `grad` (d,): dLoss/d out at
        these activations. Either one replaces the reward as the teacher. `layer`: only this base layer learns from
        the step (default: all). Raises ValueError; the trajectory is then unchanged.
        """
        d = self.config.hidden_dim
        a = vector(activations, d, "activations")
        if target is not None and grad is not None:
            raise ValueError("target and grad exclude each other")
        kind: StepKind = 0
        extra = None
        if target is not None:
            kind, extra = 1, vector(target, d, "target")
        elif grad is not None:
            kind, extra = 2, vector(grad, d, "grad")
        weight = 1.0 if attention_weights is None else attention_weight(attention_weights, self._kernels)
        value = number(reward, "reward")
        at = -1 if layer is None else _layer(layer)
        with self._lock:
            self._recorder.add_step(tid, a, extra, kind, value, weight, at)

    def set_trajectory_route(self, tid: int, model: str) -> None:
        """Which model answered: its quality, cost and latency are kept per pattern."""
        if not isinstance(model, str) or not model:
            raise ValueError(f"model must be a non-empty string, not {model!r}")
        with self._lock:
            self._recorder.opened(tid).route = model

    def add_trajectory_context(self, tid: int, context: Mapping[str, Any]) -> None:
        """`pattern_type` (a vote for the pattern's type), `pattern_type_weight`, `latency_s`, `cost`."""
        with self._lock:
            self._recorder.add_context(tid, context)

    def end_trajectory(self, tid: int, quality: float) -> None:
        """Quality in [0, 1]. The pattern and the micro-LoRA learn at once."""
        value = in_range(quality, "quality", 0.0, 1.0)
        with self._lock:
            self._recorder.end(tid, value, learn=self._enabled)

    def abort_trajectory(self, tid: int) -> None:
        """Forget an open trajectory; nothing is learned from it."""
        with self._lock:
            self._recorder.abort(tid)

    # -- patterns ------------------------------------------------------------------------------------------------

    def find_patterns(self, query: ArrayLike, k: int, min_similarity: float | None = None) -> list[LearnedPattern]:
        """Query (e,) -> at most k patterns, most similar first; a zero query is similar to none."""
        q = vector(query, self.config.embedding_dim, "query")
        require_finite(q, "query")
        if isinstance(k, bool) or not isinstance(k, int) or k < 0:
            raise ValueError(f"k must be a whole number, at least 0, not {k!r}")
        with self._lock:
            return self._recorder.bank.find(q, k, min_similarity)

    def patterns(self) -> list[LearnedPattern]:
        """All of them, heaviest first (their `similarity` is 1: no query asks). It counts as no access."""
        with self._lock:
            return self._recorder.bank.listed()

    def label_query(self, query: ArrayLike, pattern_type: PatternType, weight: float = 1.0) -> str | None:
        """A labelled query (e,), without a judged answer: a vote for the type of the pattern it belongs to.

        -> the pattern's id; None for a zero vector.
        """
        q = vector(query, self.config.embedding_dim, "query")
        require_finite(q, "query")
        if pattern_type not in PATTERN_TYPES:
            raise ValueError(f"pattern_type must be one of {', '.join(PATTERN_TYPES)}, not {pattern_type!r}")
        vote_weight = in_range(weight, "weight", 0.0, 1e6)
        norm = float(np.sqrt(q @ q))
        if norm == 0.0:
            return None
        with self._lock:
            serial = self._recorder.bank.label(q / np.float32(norm), PATTERN_TYPES.index(pattern_type), vote_weight)
        return f"p{serial}"

    # -- learning ------------------------------------------------------------------------------------------------

    def tick(self) -> str | None:
        """Call it often: runs a background cycle in the caller's thread when it is due (`background_interval_ms`)
        and `min_trajectories` wait. -> what was done, or None. Too few trajectories stay for the next time.
        """
        with self._lock:
            self._recorder.expire()
        return self._background.tick() if self._enabled else None

    def force_learn(self) -> str:
        """A background cycle now, with whatever is buffered, in the caller's thread. -> what was done.

        Due when the buffer is 80 % full (`get_stats()["force_learn_due"]`).
        """
        if not self._enabled:
            return "Forced learning: 0 trajectories -> 0 patterns, status: disabled"
        self.flush()
        return self._background.force()

    def flush(self) -> None:
        """Step the micro-LoRA now with trajectories that wait for `flush_threshold`."""
        with self._lock:
            self._recorder.instant.flush()

    # -- keeping ---------------------------------------------------------------------------------------------------

    def to_bytes(self, *, buffer: bool = True) -> bytes:
        """Everything learned and buffered (not what is open) as one safetensors file; waits for a running cycle.

        ``buffer``: False leaves out the finished trajectories that wait for a cycle, and with them every single
        query's embedding.
        """
        with self._background.running:
            with self._lock:
                self._recorder.instant.flush()
                kept = self._recorder.buffer if buffer else self._recorder.new_buffer(capacity=1)
                parts = gathered(self.config, self._recorder, self._tasks, self._base, kept)
            return encoded(*parts)

    @classmethod
    def from_bytes(cls, data: bytes, config: SonaConfig | None = None) -> SonaEngine:
        """The engine of `to_bytes`, with its own configuration or with another of the same sizes.

        Raises StateError when the bytes are damaged or newer than this version, ConfigError when sizes differ.
        """
        arrays, numbers = decoded(data)
        chosen = config if config is not None else SonaConfig(**numbers["config"], warn=False)
        engine = cls(chosen.hidden_dim, config=chosen)
        restored(arrays, numbers, engine._recorder, engine._tasks, engine._base, chosen)
        return engine

    def save(self, path: str | os.PathLike[str]) -> None:
        """`to_bytes` into a file, atomically."""
        write_atomically(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike[str], config: SonaConfig | None = None) -> SonaEngine:
        """The engine of `save`; errors as in `from_bytes`, and OSError when the file cannot be read."""
        return cls.from_bytes(Path(path).read_bytes(), config)

    def set_enabled(self, enabled: bool) -> None:
        """Off: `apply_*` return copies of x, patterns and weights stand still; trajectories are still buffered."""
        self._enabled = bool(enabled)

    def get_stats(self) -> dict[str, Any]:
        """The guide's keys and ours; plain numbers, fit for JSON."""
        with self._lock:
            r = self._recorder
            buffered, total = len(r.buffer), r.recorded
            return {
                "trajectories_recorded": total,
                "trajectories_buffered": buffered,
                "trajectories_dropped": r.dropped,
                "buffer_success_rate": 1.0 - r.dropped / total if total else 1.0,
                "patterns_stored": len(r.bank),
                "patterns_learned": r.bank.learned,
                "ewc_tasks": self._tasks.tasks,
                "instant_enabled": self._enabled and self.config.micro_lora_lr > 0,
                "background_enabled": self._enabled,
                "force_learn_due": buffered > 0.8 * self.config.trajectory_capacity,
                "trajectories_open": r.open_count,
                "trajectories_expired": r.expired,
                "micro_updates": self._micro.steps,
                "micro_updates_rejected": self._micro.rejected,
                "base_updates": self._base.updates,
                "base_layers": len(self._base.used),
            }

    def is_enabled(self) -> bool:
        """Whether the engine adapts and learns."""
        return self._enabled


def _layer(layer: int) -> int:
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < 4096:
        raise ValueError(f"layer must be a whole number in 0 to 4095, not {layer!r}")
    return layer
