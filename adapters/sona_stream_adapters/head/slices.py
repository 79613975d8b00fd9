"""A computation that stops between bounded slices, so that whoever runs it can decode in between."""

from __future__ import annotations

from collections.abc import Generator
from typing import Generic, TypeVar, cast

import torch

__all__ = ["Job"]

T = TypeVar("T")


class Job(Generic[T]):
    """Holds one of this package's generators (`gradient`, `predicted_kl`, `evaluate`) between the calls that
    advance it. Jobs may take turns, also with one `Scratch`: nothing in it outlives a slice.
    """

    def __init__(self, generator: Generator[None, None, T]) -> None:
        self._generator: Generator[None, None, T] | None = generator
        self._result: T | None = None
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do: `result` answers or raises."""
        return self._generator is None

    def advance(self, slices: int = 1) -> bool:
        """Run at most this many slices; True when done. What goes wrong is raised here and again by `result`."""
        if self._generator is None:
            return True
        try:
            with torch.inference_mode():
                for _ in range(slices):
                    next(self._generator)
        except StopIteration as finished:
            self._result, self._generator = finished.value, None
        except BaseException as error:
            self._error, self._generator = error, None
            raise
        return self.done

    def result(self) -> T:
        """Raises what ended the job, and RuntimeError while it is not done."""
        if self._error is not None:
            raise self._error
        if self._generator is not None:
            raise RuntimeError("this job is not done yet")
        return cast(T, self._result)

    def run(self) -> T:
        """To the end in one go."""
        while not self.advance(1024):
            pass
        return self.result()

    def close(self) -> None:
        """Give up what it holds."""
        if self._generator is not None:
            self._generator.close()
            self._error, self._generator = RuntimeError("this job was given up"), None
