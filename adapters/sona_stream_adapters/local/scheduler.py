"""The torch thread: continuous batching of answers, and learning jobs in slices between the tokens."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from sona_stream.errors import NotReady
from sona_stream_adapters.text import Item

from .batch import DecodeBatch
from .generation import Generation

__all__ = ["Job", "Scheduler"]

T = TypeVar("T")
Job = Generator[None, None, T]
"""Work in slices: it runs between tokens, from one ``yield`` to the next, and returns its result."""

_log = logging.getLogger(__name__)


class Scheduler:
    """One thread that owns the model. `submit` and `run` may be called from any event loop."""

    def __init__(self, batch: DecodeBatch, *, threads: int, idle_threads: int) -> None:
        """`threads` of torch while answers stream, `idle_threads` for jobs when none does."""
        self._batch = batch
        self._threads = threads
        self._idle_threads = idle_threads
        self._wake = threading.Condition()
        self._arrived: list[Generation] = []
        self._jobs: deque[tuple[Job[Any], Future[Any]]] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="sona-torch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; streams and jobs that are still open fail. Blocks for at most one slice."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return not self._stopping

    @property
    def streaming(self) -> bool:
        """Whether answers are being generated: jobs then take short slices."""
        return self._batch.busy or bool(self._arrived)

    def submit(self, generation: Generation) -> None:
        """Generate; items come through the generation's queue. To cancel, set ``cancelled``."""
        with self._wake:
            if self._stopping:
                raise NotReady("the model is shutting down")
            self._arrived.append(generation)
            self._wake.notify()

    async def run(self, job: Job[T]) -> T:
        """The job's result. Cancelling the await ends the job at its next slice."""
        future: Future[T] = Future()
        with self._wake:
            if self._stopping:
                raise NotReady("the model is shutting down")
            self._jobs.append((job, future))
            self._wake.notify()
        return await asyncio.wrap_future(future)

    def _main(self) -> None:
        try:
            with torch.inference_mode():
                torch.set_num_threads(self._threads)  # counts for this thread only
                while self._collect():
                    if self._advance_batch():
                        self._advance_job()
                    else:
                        self._work_undisturbed()
        except Exception:
            _log.critical("the torch thread ended; the model no longer answers", exc_info=True)
        finally:
            self._abandon()

    def _work_undisturbed(self) -> None:
        """Jobs at full speed until someone asks something."""
        torch.set_num_threads(self._idle_threads)
        while self._jobs and not self._arrived and not self._stopping:
            self._advance_job()
        torch.set_num_threads(self._threads)

    def _collect(self) -> bool:
        with self._wake:
            while not (self._arrived or self._jobs or self._batch.busy or self._stopping):
                self._wake.wait()
            arrived, self._arrived = self._arrived, []
            stopping = self._stopping
        for generation in arrived:
            self._batch.submit(generation)
        return not stopping

    def _advance_batch(self) -> bool:
        if not self._batch.busy:
            return False
        try:
            emitted = self._batch.advance()
        except Exception as error:
            _log.exception("decoding failed; %d answers are lost", self._batch.rows)
            _deliver([(generation, error) for generation in self._batch.fail()])
            return True
        items: list[tuple[Generation, Item]] = list(emitted)
        for generation in {id(generation): generation for generation, _ in emitted}.values():
            if not generation.active:
                generation.close()
                items.append((generation, generation.count()))
        _deliver(items)
        return True

    def _advance_job(self) -> None:
        if not self._jobs:
            return
        job, future = self._jobs[0]
        if future.cancelled():
            self._jobs.popleft()
            job.close()
            return
        try:
            next(job)
        except StopIteration as done:
            self._jobs.popleft()
            _resolve(future, done.value)
        except Exception as error:
            self._jobs.popleft()
            _reject(future, error)

    def _abandon(self) -> None:
        """At the end, whatever brought it about: nobody waits for a thread that is gone."""
        with self._wake:
            self._stopping = True
        error = NotReady("the model is shutting down")
        _deliver([(generation, error) for generation in [*self._batch.fail(), *self._arrived]])
        for job, future in self._jobs:
            job.close()
            _reject(future, error)


def _resolve(future: Future[Any], result: Any) -> None:
    if future.set_running_or_notify_cancel():  # False: nobody is waiting for it any more
        future.set_result(result)


def _reject(future: Future[Any], error: Exception) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


def _deliver(items: list[tuple[Generation, Item]]) -> None:
    """Into the streams' queues, one wake-up an event loop."""
    loops: dict[int, tuple[asyncio.AbstractEventLoop, list[tuple[Generation, Item]]]] = {}
    for generation, item in items:
        loops.setdefault(id(generation.loop), (generation.loop, []))[1].append((generation, item))
    for loop, mine in loops.values():
        try:
            loop.call_soon_threadsafe(_put, mine)
        except RuntimeError:  # the loop is closed: its clients are gone
            for generation, _ in mine:
                generation.cancelled = True


def _put(items: list[tuple[Generation, Item]]) -> None:
    for generation, item in items:
        if not generation.cancelled:
            generation.queue.put_nowait(item)
