"""A start of an engine that can be given up at any moment: it imports for seconds and waits for its processes for
minutes, in code that knows of no such thing.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.abc
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["EngineStart", "GivenUp", "Stoppable"]

_log = logging.getLogger(__name__)

_LOOK_S = 0.2
_GRACE = 10
"""looks at the processes between asking one to end and killing it"""


class Stoppable(Protocol):
    """What a start makes."""

    def stop(self) -> None:
        """Ends its processes; blocks."""
        ...


class GivenUp(BaseException):
    """Raised in the thread that starts an engine. No `Exception`: libraries that import catch those."""


T = TypeVar("T", bound=Stoppable)


class EngineStart(Generic[T]):
    """``make`` blocks in a thread of its own; None from it means that it saw `stopping` itself."""

    def __init__(self, make: Callable[[], T | None], stopping: asyncio.Event) -> None:
        self._make, self._stopping = make, stopping

    async def run(self) -> T | None:
        """What was made; None once ``stopping`` is set, with its processes ended. Raises what ``make`` does."""
        known = {child.pid for child in _children()}
        making = asyncio.create_task(asyncio.to_thread(self._guarded))
        waiting = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({making, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not self._stopping.is_set():
            return await making
        await self._give_up(making, known)
        return None

    def _guarded(self) -> T | None:
        try:
            with _imports_end(self._stopping.is_set):
                return self._make()
        except GivenUp:
            return None

    async def _give_up(self, making: asyncio.Task[T | None], known: set[int]) -> None:
        looks = 0
        while not making.done():
            _end(_new(known), kill=looks >= _GRACE)
            looks += 1
            await asyncio.wait({making}, timeout=_LOOK_S)
        error = making.exception()
        if error is not None:
            _log.debug("a start that was given up ended with: %s", error)
        elif (made := making.result()) is not None:
            await asyncio.to_thread(made.stop)
        for _ in range(_GRACE):  # what its parent no longer waits for
            left = _new(known)
            if not left:
                return
            _end(left, kill=False)
            await asyncio.sleep(_LOOK_S)
        _end(_new(known), kill=True)


@contextlib.contextmanager
def _imports_end(cancelled: Callable[[], bool]) -> Iterator[None]:
    """While inside, an import of this thread raises `GivenUp` once ``cancelled`` says so."""
    finder = _Finder(cancelled, threading.get_ident())
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing, but is asked about every module first."""

    def __init__(self, cancelled: Callable[[], bool], thread: int) -> None:
        self._cancelled, self._thread = cancelled, thread

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        """Raises GivenUp."""
        if threading.get_ident() == self._thread and self._cancelled():
            raise GivenUp(fullname)


def _children() -> list[Any]:
    """Of this process, and theirs, as far as they live."""
    import psutil

    found = psutil.Process().children(recursive=True)
    return [child for child in found if _lives(child)]


def _lives(child: Any) -> bool:
    import psutil

    try:
        return bool(child.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _new(known: set[int]) -> list[Any]:
    """Those that came since, but for the one that multiprocessing keeps for all: it ends with this process."""
    from multiprocessing import resource_tracker

    shared = getattr(getattr(resource_tracker, "_resource_tracker", None), "_pid", None)
    return [child for child in _children() if child.pid not in known and child.pid != shared]


def _end(processes: list[Any], *, kill: bool) -> None:
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if kill:
                process.kill()
            else:
                process.terminate()
