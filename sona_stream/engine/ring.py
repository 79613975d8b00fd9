"""A growing queue of fixed-size records in one structured numpy array: no Python object per record."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RecordRing"]


class RecordRing:
    """First in, first out; a record is addressed by a sequence number that never repeats."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._data = np.zeros(16, dtype)
        self.first = 0
        """sequence number of the oldest record"""
        self.end = 0
        """one past the newest"""

    def __len__(self) -> int:
        return self.end - self.first

    def append(self, record: tuple[Any, ...]) -> int:
        """-> sequence number"""
        if len(self) == len(self._data):
            grown = np.zeros(2 * len(self._data), self._data.dtype)
            numbers = np.arange(self.first, self.end)
            grown[numbers % len(grown)] = self._data[numbers % len(self._data)]
            self._data = grown
        self._data[self.end % len(self._data)] = record
        self.end += 1
        return self.end - 1

    def pop(self) -> NDArray[Any]:
        """The oldest record, removed: (1,) of the dtype."""
        at = self.first % len(self._data)
        self.first += 1
        return self._data[at : at + 1].copy()

    def slice(self, begin: int, end: int) -> NDArray[Any]:
        """A copy of records begin..end-1 by sequence number, cut to what is there."""
        begin, end = max(begin, self.first), min(end, self.end)
        return self._data[np.arange(begin, max(begin, end)) % len(self._data)]

    def set_field(self, number: int, field: str, value: Any) -> None:
        """Change one field of one record that is still there."""
        self._data[field][number % len(self._data)] = value
