"""What a step costs inside vLLM's worker, and how much of it is the plug-in's. Knows no vLLM class."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

__all__ = ["StepTimer", "WorkerCpu"]

_NAMES = ("execute_model", "_sample")


class StepTimer:
    """Two layers of clocks, one below the plug-in's wraps and one above them: what lies between is the plug-in.

    `below` before the plug-in is installed, `above` after it. Without one, what lies between is the clocks' own.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._below = self._above = 0.0
        self._step = 0.0
        self._scheduled: Any = None
        self.steps: list[tuple[float, float]] = []
        """(seconds of the step, seconds of it that are the plug-in's), of steps that only decode"""

    def below(self) -> None:
        """Clocks around vLLM's own methods."""
        for owner, name in self._methods():
            setattr(owner, name, self._timed(getattr(owner, name), self._count_below))

    def above(self) -> None:
        """Clocks around the plug-in's wraps."""
        for owner, name in self._methods():
            setattr(owner, name, self._timed(getattr(owner, name), self._count_above))
        execute, sample = self._runner.execute_model, self._runner._sample

        @functools.wraps(execute)
        def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            self._scheduled, self._step = scheduler_output, 0.0
            self._below = self._above = 0.0
            began = time.perf_counter()
            out = execute(scheduler_output, *args, **kwargs)
            self._step += time.perf_counter() - began
            return out

        @functools.wraps(sample)
        def _sample(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            out = sample(*args, **kwargs)
            self._step += time.perf_counter() - began
            tokens = self._scheduled.num_scheduled_tokens
            if all(count == 1 for count in tokens.values()):
                self.steps.append((self._step, self._above - self._below))
            return out

        self._runner.execute_model, self._runner._sample = execute_model, _sample

    def take(self) -> list[tuple[float, float]]:
        """Those since the last call."""
        found, self.steps = self.steps, []
        return found

    def _methods(self) -> list[tuple[Any, str]]:
        return [*((self._runner, name) for name in _NAMES), (self._runner.model, "compute_logits")]

    def _timed(self, method: Callable[..., Any], count: Callable[[float], None]) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                count(time.perf_counter() - began)

        return timed

    def _count_below(self, seconds: float) -> None:
        self._below += seconds

    def _count_above(self, seconds: float) -> None:
        self._above += seconds


class WorkerCpu:
    """CPU seconds of this process inside the worker's two methods of a step."""

    def __init__(self, worker: Any) -> None:
        self.seconds = 0.0
        for name in ("execute_model", "sample_tokens"):
            setattr(worker, name, self._timed(getattr(worker, name)))

    def take(self) -> float:
        """Those since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - began

        return timed
