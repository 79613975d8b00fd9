"""Steps on a CPU in float32: adapters, norm cap and the writing of states to the ring are one call of a compiled
kernel. A handful of torch operations do the same anywhere (`adapting`, `staging`), but each of them touches more
cold memory than the whole of this.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from .adapters import Adapter

__all__ = ["NativeStep", "NativeSteps"]

Kernel = Callable[[int, int, int], int]
"""`sona_stream.kernels.rows.adapt_and_keep`"""


class NativeStep:
    """One plan's. What it changes lies in its own memory, which its next step writes to again."""

    __slots__ = ("_address", "_checked", "_held", "_hidden_dim", "_kernel", "changed")

    def __init__(
        self, kernel: Kernel, hidden_dim: int, block: Sequence[int], changed: torch.Tensor | None, held: object
    ) -> None:
        integers = np.asarray(block, np.int64)
        self._kernel, self._hidden_dim = kernel, hidden_dim
        self._checked = False
        self._address = integers.ctypes.data
        self._held = (integers, held)
        self.changed = changed
        """(rows of the step, d) float32, where some are adapted"""

    def run(self, hidden: torch.Tensor, place: int) -> int:
        """`hidden` (rows of the step, d), `place` of the step's first row in the ring. How many rows were cut to
        the norm cap; -1 when the states do not lie as the kernel reads them, then nothing was done.
        """
        if not self._checked:
            if hidden.dtype is not torch.float32 or hidden.size(1) != self._hidden_dim:
                return -1
            self._checked = True
        return self._kernel(self._address, hidden.data_ptr(), place) if hidden.is_contiguous() else -1


class NativeSteps:
    """Makes them, for one ring."""

    def __init__(self, kernel: Kernel, hidden_dim: int, max_delta: float, ring: tuple[int, int, int]) -> None:
        """`ring`: addresses of its hidden states, of the served ones and of the marks of those that were cut."""
        self._kernel, self._hidden_dim, self._max_delta, self._ring = kernel, hidden_dim, max_delta, ring

    @classmethod
    def find(
        cls, device: torch.device, dtype: torch.dtype, hidden_dim: int, max_delta: float, ring: tuple[int, int, int]
    ) -> NativeSteps | None:
        """None where torch has to do it: on other devices, in other dtypes, without numba."""
        if device.type != "cpu" or dtype != torch.float32:
            return None
        try:
            from sona_stream.kernels.rows import adapt_and_keep
        except ImportError:
            return None
        _answer_as_an_object()
        return cls(adapt_and_keep, hidden_dim, max_delta, ring)

    def step(self, rows: int, users: Sequence[tuple[Adapter, range]], picked: Sequence[int]) -> NativeStep:
        """Of a batch of so many rows: `users` are adapters with their rows, `picked` the rows that are kept."""
        table = np.asarray(
            [
                (row, one.A.shape[0], one.A.data_ptr(), one.B.data_ptr(), one.gain > self._max_delta)
                for one, own in users
                for row in own
            ],
            np.int64,
        )
        changed = torch.empty(rows, self._hidden_dim) if users else None
        cut, kept = np.zeros(rows, np.uint8), np.asarray(picked, np.int64)
        block = [
            rows,
            self._hidden_dim,
            len(table),
            table.ctypes.data,
            int(np.float64(self._max_delta).view(np.int64)),
            0 if changed is None else changed.data_ptr(),
            cut.ctypes.data,
            len(kept),
            kept.ctypes.data,
            *self._ring,
        ]
        return NativeStep(self._kernel, self._hidden_dim, block, changed, (table, cut, kept, [a for a, _ in users]))


def _answer_as_an_object() -> None:
    """Let further engines start in this process. vLLM 0.32 asks whatever any module holds for its ``__dict__`` when
    one does, and takes what it gets for a dict; llvmlite's library (numba's) makes a C function of every name that
    it is asked for. The answer is put where the library looks first.
    """
    library = getattr(importlib.import_module("llvmlite.binding.ffi"), "lib", None)
    known = getattr(library, "_fntab", None)
    if isinstance(known, dict):
        known.setdefault("__dict__", {})
