"""Finished captures: first as rows of the ring, and once fetched as tensors of their own, named by a handle."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch

from sona_stream.lora import Capture

from .counters import Counters
from .refusal import Refusal
from .requests import Tracked
from .ring import CaptureRing

__all__ = ["CaptureStore", "Kept", "handle_of"]

MAX_FINISHED = 4096
"""finished requests whose rows wait in the ring"""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """One answer on the device; `sona_stream_adapters.head.TokenRows`."""

    handle: str
    request_id: str
    prompt_ids: torch.Tensor
    """(P,) int32, on the CPU"""
    token_ids: torch.Tensor
    """(T,) int32"""
    hidden: torch.Tensor
    """(T, d) in the model's dtype"""
    logprobs: torch.Tensor
    """(T,) float32"""
    versions: torch.Tensor
    """(T,) int32, on the CPU"""
    memory: torch.Tensor
    """(T,) float32: share of each token's probability that came from episodes"""
    capped: torch.Tensor
    """(T,) bool: the adapter's change was cut to the norm cap"""
    adapter_key: str | None
    temperature: float

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def nbytes(self) -> int:
        """On the device."""
        return self.hidden.numel() * self.hidden.element_size() + 13 * len(self)

    def capture(self, fingerprint: str) -> Capture:
        """As it travels."""
        memory = self.memory.cpu().numpy()
        return Capture(
            request_id=self.request_id,
            fingerprint=fingerprint,
            prompt_ids=self.prompt_ids.numpy(),
            token_ids=self.token_ids.cpu().numpy(),
            hidden=self.hidden.float().cpu().numpy(),
            logprobs=self.logprobs.cpu().numpy(),
            adapter_versions=self.versions.numpy(),
            adapter_key=self.adapter_key,
            temperature=self.temperature,
            handle=self.handle,
            memory=memory if memory.any() else None,
        )


class CaptureStore:
    """Handle -> Kept within a budget of bytes, the least recently used goes first; and the finished requests whose
    rows are still in the ring alone.
    """

    def __init__(self, ring: CaptureRing, counters: Counters, *, max_bytes: int) -> None:
        self._ring, self._counters, self._max_bytes = ring, counters, max_bytes
        self._finished: OrderedDict[str, Tracked] = OrderedDict()
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._handles: dict[str, str] = {}
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """On the device, without the ring."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._kept)

    def finish(self, tracked: Iterable[Tracked]) -> None:
        """These requests ended. Several of one capture id (n > 1) become ``id``, ``id#1``, ... Those that left
        nothing (their client went while the prompt was read) are not kept.
        """
        for one in tracked:
            if not one.rows and not one.taught:
                continue
            rid = name = str(one.binding.rid)
            again = 0
            while name in self._finished:
                again += 1
                name = f"{rid}#{again}"
            self._finished[name] = one
            if again == 0:
                self._forget_name(rid)
        while (oldest := self._to_forget()) is not None:
            self._counters.lost_rows += self._ring.lost(self._finished.pop(oldest).rows)

    def waiting(self, rid: str) -> Tracked | None:
        """The finished request of this id that was not fetched yet."""
        return self._finished.get(rid)

    def settle(self, rid: str) -> None:
        """It was fetched: its rows may go."""
        self._finished.pop(rid, None)

    def keep(self, kept: Kept, name: str | None = None) -> bool:
        """Whether it fits. `name`: its capture id, by which it can be asked for again."""
        if kept.nbytes > self._max_bytes:
            return False
        self._discard(kept.handle)
        self._kept[kept.handle] = kept
        self._bytes += kept.nbytes
        if name is not None:
            self._handles[name] = kept.handle
        while self._bytes > self._max_bytes:
            self._discard(next(iter(self._kept)))
        return True

    def named(self, rid: str) -> Kept | None:
        """The kept capture of this id."""
        handle = self._handles.get(rid)
        if handle is None:
            return None
        kept = self._kept.get(handle)
        if kept is not None:
            self._kept.move_to_end(handle)
        return kept

    def find(self, handles: Sequence[str]) -> list[Kept]:
        """In this order. Raises Refusal that names those that are gone."""
        gone = [handle for handle in handles if handle not in self._kept]
        if gone:
            raise Refusal(
                f"{len(gone)} of {len(handles)} captures are gone; SONA_VLLM_CAPTURE_MB bounds what is kept",
                gone=gone,
            )
        for handle in handles:
            self._kept.move_to_end(handle)
        return [self._kept[handle] for handle in handles]

    def release(self, rid: str) -> None:
        """Forget what there is of this capture id or handle."""
        self._finished.pop(rid, None)
        self._discard(self._handles.pop(rid, rid))

    def clear(self) -> None:
        """Forget everything."""
        self._finished.clear()
        self._kept.clear()
        self._handles.clear()
        self._bytes = 0

    def _to_forget(self) -> str | None:
        """Where there are too many, the oldest; else the oldest that had rows, when the ring has lost them all."""
        if len(self._finished) > MAX_FINISHED:
            return next(iter(self._finished))
        for name, tracked in self._finished.items():
            if rows := tracked.rows:
                return name if self._ring.lost(rows) == len(rows) else None
        return None

    def _forget_name(self, rid: str) -> None:
        handle = self._handles.pop(rid, None)
        if handle is not None:
            self._discard(handle)

    def _discard(self, handle: str) -> None:
        gone = self._kept.pop(handle, None)
        if gone is not None:
            self._bytes -= gone.nbytes
            self._handles = {name: h for name, h in self._handles.items() if h != handle}


def handle_of(*parts: object) -> str:
    """The same on every rank: made of what was captured, not of when or where."""
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()
