"""The table of served adapters: swapping an entry takes effect at the next token."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Sequence

import torch

from sona_stream.errors import HostError, NotFound
from sona_stream.events import AdapterRef
from sona_stream.lora import LoraWeights
from sona_stream_adapters.head import Factors, check_weights, stack_factors

__all__ = ["AdapterTable", "adapt"]

_log = logging.getLogger(__name__)


def adapt(hidden: torch.Tensor, factors: Sequence[Factors | None]) -> torch.Tensor:
    """(n, ..., d) -> the same shape: row i through ``factors[i]``. Rows without one keep their exact bits; without
    any, the input itself is returned.
    """
    groups: dict[int, tuple[Factors, list[int]]] = {}
    for row, entry in enumerate(factors):
        if entry is not None:
            groups.setdefault(id(entry), (entry, []))[1].append(row)
    if not groups:
        return hidden
    out = hidden.clone()
    for entry, rows in groups.values():
        states = hidden[rows]
        out[rows] = states + (states @ entry.A.T) @ entry.B.T
    return out


class AdapterTable:
    """Key -> weights within a budget of bytes: of what no answer under way uses, the least recently used goes
    first. Writers are on the event loop, the reader is the torch thread: each write is one assignment of a whole
    entry, so a reader sees the old one or the new one.
    """

    def __init__(self, hidden_dim: int, *, max_bytes: int, layers: int = 0) -> None:
        """`layers`: of the model, where those are adapted, too."""
        self._hidden_dim, self._layers = hidden_dim, layers
        self.max_bytes, self.nbytes, self.evictions = max_bytes, 0, 0
        self._entries: OrderedDict[str, Factors] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._users: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: str, version: int, weights: LoraWeights) -> None:
        """Raises HostError on a wrong shape, a rank out of bounds, or a value that is not finite."""
        check_weights(weights, self._hidden_dim, layers=self._layers)
        if version < 1:
            raise HostError(f"version {version} of adapter {key!r}: versions count from 1")
        self._make_room(key, weights.nbytes)
        self._entries[key] = stack_factors(weights, version)
        self._entries.move_to_end(key)
        self.nbytes += weights.nbytes - self._sizes.get(key, 0)
        self._sizes[key] = weights.nbytes

    def drop(self, key: str) -> None:
        """Unknown keys are fine: dropping is idempotent."""
        self._entries.pop(key, None)
        self.nbytes -= self._sizes.pop(key, 0)

    def holds(self, key: str) -> bool:
        """Whether it is here; it counts as used."""
        if key not in self._entries:
            return False
        self._entries.move_to_end(key)
        return True

    def begin(self, ref: AdapterRef | None) -> None:
        """An answer that uses it is under way: it stays until `end`. A pinned one stays with whoever has it."""
        if ref is not None and not ref.pinned:
            self._users[ref.key] += 1
            self.holds(ref.key)

    def end(self, ref: AdapterRef | None) -> None:
        """That answer is over."""
        if ref is not None and not ref.pinned:
            self._users[ref.key] -= 1
            if self._users[ref.key] <= 0:
                del self._users[ref.key]

    def _make_room(self, key: str, size: int) -> None:
        """For `size` bytes under `key`. Nothing leaves when all that may would not be enough."""
        too_much = self.nbytes - self._sizes.get(key, 0) + size - self.max_bytes
        leaving = []
        for other in self._entries:
            if too_much <= 0:
                break
            if other != key and other not in self._users:
                leaving.append(other)
                too_much -= self._sizes[other]
        if too_much > 0:
            raise HostError(
                f"adapter {key!r} needs {size} bytes; litellm_params.adapter_mb allows {self.max_bytes}, and "
                "answers under way use the rest"
            )
        if leaving and not self.evictions:
            _log.warning(
                "litellm_params.adapter_mb is full: of %d adapters those that no answer uses make room and are put "
                "again when a request names them; `sona-stream capacity` tells what fits",
                len(self._entries),
            )
        for other in leaving:
            self.drop(other)
        self.evictions += len(leaving)

    def current(self, ref: AdapterRef | None) -> Factors | None:
        """What serves the next token; None is the base model (no adapter, or dropped meanwhile)."""
        return None if ref is None else self._entries.get(ref.key)

    def pinned(self, ref: AdapterRef) -> Factors:
        """Exactly this version, under its own key ``key@version`` or as the current one. Raises NotFound."""
        entry = self._entries.get(str(ref)) or self._entries.get(ref.key)
        if entry is None or entry.version != ref.version:
            raise NotFound(f"adapter {ref} is not on this host")
        return entry
