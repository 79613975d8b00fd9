"""Which adapters have their weights in memory. The others are in the store alone, and are read when they are used.

What an idle adapter keeps in memory is its versions' numbers (`stripped`), so that a request finds it without a
look at the disk. Beyond the budget the one used least recently is stripped, never one that is being learned. A
replay then begins at the version that is kept, as it does after a restart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import numpy as np

from ...budgets import Budget
from ...lora import F32, AdapterRecord, LoraWeights, LowRank
from ...protocols import AdapterLister, Store
from .keys import EVERYTHING, AdapterKey
from .line import Line

__all__ = ["Shelf", "is_stripped", "less", "listed", "size_of", "stripped"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_RECORDS = ("served", "working", "candidate")


def stripped(record: AdapterRecord) -> AdapterRecord:
    """The same without weights, moments, and what was measured."""
    weights = _nothing(record.weights.hidden_dim)
    return dataclasses.replace(record, weights=weights, moments={}, metrics={}, feedback_ids=())


@functools.cache
def _nothing(dim: int) -> LoraWeights:
    none = np.zeros((0, dim), np.float32)
    return LoraWeights(LowRank(none, none.T))


def is_stripped(record: AdapterRecord | None) -> bool:
    """Whether it has no weights."""
    return record is not None and not len(record.weights.micro.lora_A)


def size_of(record: AdapterRecord) -> int:
    """Bytes of its weights and moments."""
    return record.weights.nbytes + sum(moment.nbytes for moment in record.moments.values())


async def listed(store: Store) -> list[tuple[AdapterRecord, int]]:
    """Every version stripped, with its bytes; by key, the newest last."""
    if isinstance(store, AdapterLister):
        return await store.adapter_heads()
    return [(stripped(record), size_of(record)) for record in await store.adapters()]


class Shelf:
    """Of all lines, least recently used first. Belongs to one event loop."""

    def __init__(
        self,
        store: Store,
        max_bytes: int,
        lost: Callable[[Line, str], None],
        ready: Callable[[AdapterKey], Awaitable[object]],
    ) -> None:
        """``lost``: told why a line's version is not served any more; ``ready``: has what else is known of a key in
        memory when it returns.
        """
        self._store, self.max_bytes, self._lost, self._ready = store, max_bytes, lost, ready
        self._sizes: OrderedDict[Line, int] = OrderedDict()
        self._users: Counter[Line] = Counter()
        self._roots: Counter[AdapterKey] = Counter()
        self.nbytes = self.evictions = 0

    @contextlib.asynccontextmanager
    async def using(self, line: Line, *, learning: bool = True) -> AsyncIterator[Line]:
        """The line has its weights and, where it is to learn, its watch, and keeps them meanwhile. A version that
        is gone is one no more.
        """
        root = line.key.at(EVERYTHING)
        self._users[line] += 1
        self._roots[root] += 1
        try:
            await self._wake(line)
            if learning:
                await self._ready(line.key)
            yield line
        finally:
            less(self._users, line)
            less(self._roots, root)
            self.note(line)

    def in_use(self, root: AdapterKey) -> bool:
        """Whether something of this model and tenant is being learned."""
        return root in self._roots

    def note(self, line: Line) -> None:
        """The line's records are others now, or it was used; beyond the budget others are stripped."""
        records = [one for one in (line.served, line.working, line.candidate) if one is not None]
        arrays = [array for one in records for array in (*_arrays(one.weights), *one.moments.values())]
        arrays += [] if line.fit is None else _arrays(line.fit)
        size = sum({id(array): array.nbytes for array in arrays}.values())  # versions share some
        self.nbytes += size - self._sizes.pop(line, 0)
        if size:
            self._sizes[line] = size
        self._make_room()

    def forget(self, line: Line) -> None:
        """It holds nothing that is of use any more."""
        line.served = line.working = line.candidate = line.fit = None
        self.note(line)

    def budget(self) -> Budget:
        """As it is now."""
        setting = "sona.learner.adapter_mb"
        return Budget("adapters", setting, len(self._sizes), self.nbytes, self.max_bytes, self.evictions)

    async def _wake(self, line: Line) -> None:
        for name in _RECORDS:
            record = getattr(line, name)
            while is_stripped(record):
                whole = await self._store.adapter(record.key, record.version)
                if whole is None:
                    self._lost(line, f"version {record.version} cannot be read any more")
                else:
                    whole = dataclasses.replace(whole, status=record.status)
                for other in _RECORDS:
                    if getattr(line, other) is record:  # else it became another one meanwhile
                        setattr(line, other, whole)
                record = getattr(line, name)
        self.note(line)

    def _make_room(self) -> None:
        for line in list(self._sizes) if self.nbytes > self.max_bytes else ():
            if self.nbytes <= self.max_bytes:
                return
            if line not in self._users:
                self._strip(line)

    def _strip(self, line: Line) -> None:
        if not self.evictions:
            _log.warning(
                "sona.learner.adapter_mb is full: of %d adapters those not in use leave memory and are read from "
                "the store when they are; `sona-stream capacity` tells what fits",
                len(self._sizes),
            )
        known: dict[int, AdapterRecord] = {}
        for name in _RECORDS:
            record = getattr(line, name)
            if record is not None:
                setattr(line, name, known.setdefault(id(record), stripped(record)))
        line.fit = None
        self.nbytes -= self._sizes.pop(line)
        self.evictions += 1


def _arrays(weights: LoraWeights) -> list[F32]:
    return [factor for pair in weights.pairs for factor in (pair.lora_A, pair.lora_B)]


def less(users: Counter[T], one: T) -> None:
    """One user fewer; the last one leaves no trace."""
    users[one] -= 1
    if not users[one]:
        del users[one]
