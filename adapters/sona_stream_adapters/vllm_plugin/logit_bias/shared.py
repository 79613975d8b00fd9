"""One table for all ranks of a tensor-parallel group.

Every rank samples the same logits by itself, so all must change over in the same step: two ranks that see a new
file a step apart would draw different tokens and go on with different contexts. So rank 0 alone watches the folder,
and every few steps, at a point that all ranks reach, it tells the others what is new.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from .file import TenantBias
from .folder import BiasFolder, BiasTable

__all__ = ["SharedTable"]

_log = logging.getLogger("sona_stream.vllm_plugin")

EVERY = 16
"""steps between two looks: a broadcast costs some 100 microseconds"""

Broadcast = Callable[[Any], Any]
"""rank 0's argument -> the same on every rank; all ranks must call it"""


class SharedTable:
    """`step` must be called once a step by every rank, whatever else fails."""

    def __init__(self, folder: BiasFolder | None, broadcast: Broadcast | None) -> None:
        """`folder` is None on ranks that follow; `broadcast` is None where there is one rank."""
        self._folder, self._broadcast = folder, broadcast
        self._steps = 0
        self._table: BiasTable = MappingProxyType({})
        self._sent: BiasTable = self._table

    def step(self) -> BiasTable:
        """What is served in this step."""
        if self._broadcast is None:
            return self._table if self._folder is None else self._folder.table
        if self._steps % EVERY == 0:
            news: dict[str, TenantBias | None] | None = self._broadcast(self._news())
            if news:
                kept = {tenant: bias for tenant, bias in self._table.items() if tenant not in news}
                self._table = MappingProxyType(kept | {t: bias for t, bias in news.items() if bias is not None})
        self._steps += 1
        return self._table

    def _news(self) -> dict[str, TenantBias | None] | None:
        if self._folder is None or self._folder.table is self._sent:
            return None
        now, before = self._folder.table, self._sent
        self._sent = now
        news: dict[str, TenantBias | None] = {t: bias for t, bias in now.items() if before.get(t) is not bias}
        return news | dict.fromkeys(before.keys() - now.keys())
