"""When a background cycle runs, and how its result is published without stopping the others.

A cycle takes the whole buffer and leaves an empty one. While it runs, trajectories go on being recorded into the
old bank and the new buffer; before the new bank takes over they are told to it, a few at a time.
"""

from __future__ import annotations

import math
import threading
import time

import numpy as np

from ..config.engine import SonaConfig
from ..kernels import Kernels
from .base_lora import BaseLora
from .cycle import CycleResult, run_cycle
from .ewc import TaskMemory
from .recorder import Recorder
from .remainders import BankCopy
from .trajectories import Outcome, TrajectoryBuffer

__all__ = ["Background"]

_SLICE = 8


class Background:
    """Single flight: a second `force` waits for the first, a second `tick` goes away."""

    def __init__(
        self,
        config: SonaConfig,
        kernels: Kernels,
        lock: threading.Lock,
        recorder: Recorder,
        tasks: TaskMemory,
        base: BaseLora,
    ) -> None:
        self._config = config
        self._kernels = kernels
        self._lock = lock
        self._recorder = recorder
        self._tasks = tasks
        self._base = base
        self._running = threading.Lock()
        self._last = time.monotonic()

    @property
    def running(self) -> threading.Lock:
        """Held while a cycle runs: whoever holds it sees no trajectory in between."""
        return self._running

    def tick(self) -> str | None:
        """A cycle if it is due and there is enough to learn from."""
        if time.monotonic() - self._last < self._config.background_interval_ms / 1000.0:
            return None
        if len(self._recorder.buffer) < self._config.min_trajectories:
            return None
        if not self._running.acquire(blocking=False):
            return None
        try:
            return self._cycle("Background")
        finally:
            self._running.release()

    def force(self) -> str:
        """A cycle now."""
        with self._running:
            return self._cycle("Forced")

    def _cycle(self, word: str) -> str:
        with self._lock:
            recorder = self._recorder
            if not len(recorder.buffer):
                self._last = time.monotonic()
                return f"{word} learning: 0 trajectories -> {len(recorder.bank)} patterns, status: nothing buffered"
            buffer, recorder.buffer = recorder.buffer, recorder.new_buffer()
            copy = BankCopy(recorder.bank)
            micro = recorder.micro.served
            held = {group: self._tasks.held(group) for group in self._base.groups}
        try:
            result = run_cycle(
                buffer,
                copy,
                recorder.bank,
                micro,
                self._base,
                held,
                self._tasks.penalty,
                self._config,
                self._kernels,
            )
        except BaseException:
            with self._lock:
                recorder.dropped += recorder.give_back(buffer)
            raise
        self._publish(result)
        self._last = time.monotonic()
        return (
            f"{word} learning: {result.trajectories} trajectories -> {len(result.bank)} patterns, status: completed"
        )

    def _publish(self, result: CycleResult) -> None:
        at = 0
        while True:
            with self._lock:
                buffer = self._recorder.buffer
                at = max(at, buffer.trajectories.first)
                end = min(at + _SLICE, buffer.trajectories.end)
                _tell(result, buffer, at, end)
                at = end
                if at == buffer.trajectories.end:
                    self._recorder.take_bank(result.bank)
                    self._base.groups = result.base
                    self._base.updates += 1
                    return


def _tell(result: CycleResult, buffer: TrajectoryBuffer, begin: int, end: int) -> None:
    """Record trajectories begin..end-1 of the new buffer in the new bank."""
    for number, record in enumerate(buffer.trajectories.slice(begin, end), begin):
        if record["pattern"] < 0:
            continue
        query = buffer.queries.get_one(int(record["query"]))
        outcome = Outcome(
            quality=float(record["quality"]),
            reward=float(record["reward"]),
            vote=int(record["vote"]),
            vote_weight=float(record["vote_weight"]),
            route=buffer.route_name(int(record["route"])),
            cost=float(record["cost"]),
            latency=float(record["latency"]),
        )
        known = result.bank.record(query / np.float32(math.sqrt(float(query @ query))), outcome)
        buffer.trajectories.set_field(number, "pattern", known.serial)
