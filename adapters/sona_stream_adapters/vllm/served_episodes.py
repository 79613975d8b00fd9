"""The episodes that a server was given, and which of them this start of it holds."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sona_stream.errors import HostAway, HostError
from sona_stream.events import EpisodeRef
from sona_stream.lora import HiddenSpace
from sona_stream_adapters.vllm_plugin import codec, codec_computed

from .link import Link

__all__ = ["ServedEpisodes"]

_log = logging.getLogger(__name__)

_MAX_BYTES = 64 << 20
"""of what is kept here, so that a server that starts again, or had to evict, can be given it once more"""
_HALF_LIMIT = 6e4


@dataclasses.dataclass(slots=True, eq=False)
class _Entry:
    token_ids: NDArray[np.int32]
    version: str
    """of the space"""
    blob: bytes
    there: bool = False


class ServedEpisodes:
    """By key, the least recently used goes first. What is not there is put before the first request naming it."""

    def __init__(self, link: Link, fingerprint: str, *, max_bytes: int = _MAX_BYTES) -> None:
        self._link, self._fingerprint, self.max_bytes = link, fingerprint, max_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._given: set[str] = set()
        """keys that this start of the server was given and not told to drop: answers under way may draw on them,
        whether or not they are kept here, or still there for others"""
        self.nbytes = self.evictions = 0
        self._putting = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    async def set(
        self, key: str, hidden: NDArray[np.float32], token_ids: NDArray[np.int32], space: HiddenSpace
    ) -> None:
        """Nothing travels when it is there. Raises HostError or HostAway; then the key names nothing."""
        known = self._entries.get(key)
        if known is None or known.version != space.version or not np.array_equal(known.token_ids, token_ids):
            known = _Entry(np.array(token_ids, np.int32), space.version, self._blob(hidden, token_ids, space))
            self._keep(key, known)
        self._entries.move_to_end(key)
        try:
            await self._ensure(key, known)
        except HostError:
            if self._entries.get(key) is known:
                self._forget(key)
            raise

    def drop(self, key: str) -> bool:
        """No longer meant to be there. Whether the server has to be told."""
        known = self._forget(key) or key in self._given
        self._given.discard(key)
        return known

    def lost(self) -> None:
        """The server was started again: nothing of it is there."""
        for entry in self._entries.values():
            entry.there = False
        self._given.clear()

    async def bind(self, refs: Sequence[EpisodeRef]) -> dict[str, list[Any]]:
        """The arguments that name those that are there; a request goes without the others."""
        bound = [ref for ref in refs if 0 < ref.gate <= 1 and await self._is_there(ref.key)]
        if not bound:
            return {}
        named: dict[str, list[Any]] = {
            "sona_episodes": [ref.key for ref in bound],
            "sona_gates": [float(ref.gate) for ref in bound],
        }
        if any(ref.share != 1.0 for ref in bound):
            named["sona_shares"] = [float(ref.share) for ref in bound]
        return named

    async def _is_there(self, key: str) -> bool:
        entry = self._entries.get(key)
        if entry is None:
            return False
        self._entries.move_to_end(key)
        try:
            await self._ensure(key, entry)
        except (HostAway, HostError) as error:
            _log.warning("a request goes without the episode %s: %s", key, error)
            return False
        return True

    async def _ensure(self, key: str, entry: _Entry) -> None:
        if entry.there:
            return
        async with self._putting:
            if entry.there or self._entries.get(key) is not entry:
                return
            self._given.add(key)
            told = await self._link.tensors("PUT", "episodes", entry.blob, key=key)
            for evicted in codec.names_in(told, "evicted"):
                if evicted in self._entries:
                    self._entries[evicted].there = False
            entry.there = True

    def _blob(self, hidden: NDArray[np.float32], token_ids: NDArray[np.int32], space: HiddenSpace) -> bytes:
        arrays, facts = codec_computed.space_parts(space)
        # The server compares them in half precision anyway.
        half = hidden.size > 0 and float(np.abs(hidden).max()) < _HALF_LIMIT
        arrays |= {
            "hidden": np.asarray(hidden, np.float16 if half else np.float32),
            "token_ids": np.asarray(token_ids, np.int32),
        }
        return codec.pack(arrays, {**facts, "fingerprint": self._fingerprint})

    def _keep(self, key: str, entry: _Entry) -> None:
        self._forget(key)
        self._entries[key] = entry
        self.nbytes += len(entry.blob)
        while self.nbytes > self.max_bytes and len(self._entries) > 1:
            self._forget(next(iter(self._entries)))
            self.evictions += 1

    def _forget(self, key: str) -> bool:
        """Of what is kept here. Whether it was."""
        gone = self._entries.pop(key, None)
        if gone is not None:
            self.nbytes -= len(gone.blob)
        return gone is not None
