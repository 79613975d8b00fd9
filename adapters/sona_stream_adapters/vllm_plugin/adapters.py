"""The adapters that are here. Each version's tensors are never written to once they are in: a step that uses them
keeps them alive, so nothing is reused under a running request, and a swap is one assignment.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, OrderedDict
from collections.abc import Iterator

import torch

from sona_stream.lora import LoraWeights

from .refusal import Refusal

__all__ = ["Adapter", "AdapterTable"]

_DROPPED = 4096
"""of which it is remembered that they were not wanted any more"""


@dataclasses.dataclass(slots=True, eq=False)
class Adapter:
    """One version: delta(h) = (h A^T) B with micro and base side by side, the scalings multiplied into B."""

    key: str
    version: int
    A: torch.Tensor
    """(q, d) float32 on the device, q = the ranks of micro and base together"""
    B: torch.Tensor
    """(q, d) float32 on the device: the transposed factor"""
    gain: float
    """largest |delta(h)| / |h| over all h: the spectral norm"""
    used: int = 0
    """when it last served or arrived, counted in events"""

    @property
    def nbytes(self) -> int:
        """On the device."""
        return self.A.numel() * 4 + self.B.numel() * 4


class AdapterTable:
    """(key, version) -> Adapter, within a budget of bytes. Of what no live request holds, versions that were
    replaced go first, then the least recently used keys.
    """

    def __init__(self, *, max_bytes: int, device: torch.device | str = "cpu") -> None:
        self.generation = 0
        """grows with every change; whoever caches what it looked up compares it"""
        self.evictions = 0
        self._max_bytes = max_bytes
        self._device = torch.device(device)
        self._versions: dict[tuple[str, int], Adapter] = {}
        self._current: dict[str, Adapter] = {}
        self._dropped: OrderedDict[tuple[str, int | None], None] = OrderedDict()
        self._holders: Counter[tuple[str, int | None]] = Counter()
        self._bytes = 0
        self._clock = 0

    def __iter__(self) -> Iterator[Adapter]:
        return iter(self._versions.values())

    def __len__(self) -> int:
        return len(self._versions)

    @property
    def nbytes(self) -> int:
        """On the device."""
        return self._bytes

    def is_current(self, adapter: Adapter) -> bool:
        """Whether requests that name no version get this one."""
        return self._current.get(adapter.key) is adapter

    def put(self, key: str, version: int, weights: LoraWeights) -> Adapter:
        """Serve it under `key` from the next step on. `weights` were checked. Raises Refusal when live requests
        hold so much that it does not fit.
        """
        if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version < 1 << 31:
            raise Refusal(f"version {version!r} of adapter {key!r}: versions count from 1")
        adapter = self._load(key, version, weights)
        replaced = self._versions.get((key, version))
        room = self._max_bytes - adapter.nbytes + (0 if replaced is None else replaced.nbytes)
        self._make_room(room, keep=replaced)
        if self._bytes > room:
            raise Refusal(
                f"adapter {key!r} needs {adapter.nbytes} bytes, and live requests hold {self._bytes} of the "
                f"{self._max_bytes} that SONA_VLLM_ADAPTER_MB allows"
            )
        if replaced is not None:
            self._remove(replaced)
        self._versions[key, version] = adapter
        self._current[key] = adapter
        for version_or_any in (None, version):
            self._dropped.pop((key, version_or_any), None)
        self._bytes += adapter.nbytes
        self.generation += 1
        return adapter

    def drop(self, key: str, version: int | None = None) -> int:
        """Forget one version, or all of them; live requests go on without. Returns how many there were."""
        wanted = [a for a in self._versions.values() if a.key == key and version in (None, a.version)]
        self._dropped[key, version] = None
        for adapter in wanted:
            if self.is_current(adapter):
                self._dropped[key, None] = None
            self._remove(adapter)
        while len(self._dropped) > _DROPPED:
            self._dropped.popitem(last=False)
        self.generation += bool(wanted)
        return len(wanted)

    def clear(self) -> int:
        """Forget everything. Returns how many there were."""
        count = len(self._versions)
        self._versions.clear()
        self._current.clear()
        self._bytes = 0
        self.generation += 1
        return count

    def find(self, key: str, version: int | None) -> Adapter | None:
        """The pinned version, or without one the current."""
        return self._current.get(key) if version is None else self._versions.get((key, version))

    def was_dropped(self, key: str, version: int | None) -> bool:
        """Whether it is not here because it was not wanted any more."""
        return (key, None) in self._dropped or (key, version) in self._dropped

    def hold(self, key: str, version: int | None) -> None:
        """A request begins that names it: it is not evicted until `release`."""
        self._holders[key, version] += 1
        self._touch(self.find(key, version))

    def release(self, key: str, version: int | None) -> None:
        """That request ended."""
        self._holders[key, version] -= 1
        if self._holders[key, version] <= 0:
            del self._holders[key, version]
        self._touch(self.find(key, version))

    def _load(self, key: str, version: int, weights: LoraWeights) -> Adapter:
        pairs = [weights.micro] if weights.base is None else [weights.micro, weights.base]
        A = torch.cat([torch.from_numpy(pair.lora_A) for pair in pairs]).float()
        B = torch.cat([torch.from_numpy(pair.lora_B).float().T * pair.scaling for pair in pairs])
        gain = _spectral_norm(A, B)
        self._clock += 1
        return Adapter(key, version, A.to(self._device), B.contiguous().to(self._device), gain, self._clock)

    def _touch(self, adapter: Adapter | None) -> None:
        if adapter is not None:
            self._clock += 1
            adapter.used = self._clock

    def _is_held(self, adapter: Adapter) -> bool:
        pinned = (adapter.key, adapter.version) in self._holders
        return pinned or (self.is_current(adapter) and (adapter.key, None) in self._holders)

    def _make_room(self, room: int, keep: Adapter | None) -> None:
        if self._bytes <= room:
            return
        free = [a for a in self._versions.values() if a is not keep and not self._is_held(a)]
        free.sort(key=lambda a: (self.is_current(a), a.used))
        for adapter in free:
            if self._bytes <= room:
                return
            self._remove(adapter)
            self.evictions += 1
            self.generation += 1

    def _remove(self, adapter: Adapter) -> None:
        del self._versions[adapter.key, adapter.version]
        if self.is_current(adapter):
            del self._current[adapter.key]
        self._bytes -= adapter.nbytes


def _spectral_norm(A: torch.Tensor, B: torch.Tensor) -> float:
    """Of B^T A, from the two (q, q) triangles: a bound that no row can exceed. In double."""
    triangle_a = torch.linalg.qr(A.double().T, mode="r").R
    triangle_b = torch.linalg.qr(B.double().T, mode="r").R
    return float(torch.linalg.matrix_norm(triangle_b @ triangle_a.T, ord=2))
