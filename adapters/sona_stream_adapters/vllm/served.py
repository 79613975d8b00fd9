"""The adapters that a server is meant to hold, and which of them this start of it was given."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable

from sona_stream.errors import HostAway, HostError, NotFound
from sona_stream.events import AdapterRef
from sona_stream.lora import LoraWeights

__all__ = ["Entry", "ServedAdapters"]

_log = logging.getLogger(__name__)

_MAX_BYTES = 256 << 20
"""of what is kept here, so that a server that starts again, or had to evict, can be given it once more"""


@dataclasses.dataclass(slots=True, eq=False)
class Entry:
    """One adapter."""

    version: int
    weights: LoraWeights
    there: bool = False


Put = Callable[[str, Entry], Awaitable[Iterable[str]]]
"""Gives an adapter to the server; returns the names that it evicted for it."""


class ServedAdapters:
    """By the name that requests bind, the least recently used goes first. What is not there is put before the first
    request that wants it; of what went, whoever put it is asked again (`holds`).
    """

    def __init__(self, put: Put, *, max_bytes: int = _MAX_BYTES) -> None:
        self._put, self.max_bytes = put, max_bytes
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._putting = asyncio.Lock()
        self.nbytes = self.evictions = 0

    def __len__(self) -> int:
        return len(self._entries)

    async def set(self, name: str, version: int, weights: LoraWeights) -> None:
        """Serve from the next token on. Raises HostError or HostAway; then what was served before still is."""
        entry = Entry(version, weights)
        async with self._putting:
            before = self._entries.get(name)
            self._keep(name, entry)
            try:
                await self._give(name, entry)
            except BaseException:
                if before is None:
                    self.drop(name)
                else:
                    # It may have arrived all the same: the older one is given again before it is bound.
                    self._keep(name, dataclasses.replace(before, there=False))
                raise
            while self.nbytes > self.max_bytes and len(self._entries) > 1:
                self.drop(next(iter(self._entries)))
                self.evictions += 1

    def holds(self, name: str) -> bool:
        """Whether it can be bound; it counts as used."""
        if name not in self._entries:
            return False
        self._entries.move_to_end(name)
        return True

    def drop(self, name: str) -> bool:
        """No longer meant to be there. Whether it was."""
        gone = self._entries.pop(name, None)
        if gone is not None:
            self.nbytes -= gone.weights.nbytes
        return gone is not None

    def _keep(self, name: str, entry: Entry) -> None:
        self.drop(name)
        self._entries[name] = entry
        self.nbytes += entry.weights.nbytes

    def lost(self) -> None:
        """The server was started again: nothing of it is there."""
        for entry in self._entries.values():
            entry.there = False

    async def bind(self, ref: AdapterRef) -> tuple[str, AdapterRef] | None:
        """(name to bind, what serves); None when this adapter is none of ours or the server refuses it.

        Raises HostAway when it cannot be put now, NotFound for a pinned version that is not here.
        """
        name = str(ref) if str(ref) in self._entries else ref.key
        entry = self._entries.get(name)
        if ref.pinned and (entry is None or entry.version != ref.version):
            raise NotFound(f"adapter {ref} is not on this host")
        if entry is None:
            return None
        if not entry.there:
            try:
                await self.ensure(name)
            except HostAway:
                raise
            except HostError as error:
                _log.warning("adapter %s@%s cannot be served: %s", name, entry.version, error)
                return None
        return name, AdapterRef(key=ref.key, version=entry.version, pinned=ref.pinned)

    async def ensure(self, name: str) -> None:
        """Put it if it is not there."""
        async with self._putting:
            entry = self._entries.get(name)
            if entry is not None and not entry.there:
                await self._give(name, entry)

    async def restore(self) -> None:
        """Put whatever is not there. Raises HostAway; what the server refuses is logged."""
        for name in [name for name, entry in self._entries.items() if not entry.there]:
            try:
                await self.ensure(name)
            except HostAway:
                raise
            except HostError as error:
                _log.warning("adapter %s cannot be served: %s", name, error)

    async def _give(self, name: str, entry: Entry) -> None:
        for evicted in await self._put(name, entry):
            other = self._entries.get(evicted)
            if other is not None:
                other.there = False
        entry.there = True
