"""Captured tokens side by side, cut into segments that a product with the head can take."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Batch", "CapturedTokens", "Key", "Segment", "TokenRows", "groups"]

CHUNK = 64
"""tokens a product with W: about 50 ms for a vocabulary of 50,000 on one core"""

MEMORY_DECIDED = 0.5
"""above this share of its probability memory decided a token: it says nothing about the adapter"""

Key = tuple[bytes, int, int]


class TokenRows(Protocol):
    """T tokens of one answer; `sona_stream.lora.Capture` is one. Arrays may be numpy or tensors on any device."""

    @property
    def request_id(self) -> str:
        """What errors call it."""
        ...

    @property
    def hidden(self) -> Any:
        """(T, d) final states of the unadapted model, any float dtype"""
        ...

    @property
    def token_ids(self) -> Any:
        """(T,)"""
        ...

    @property
    def logprobs(self) -> Any:
        """(T,) of each token under the policy that drew it"""
        ...

    @property
    def temperature(self) -> float:
        """0 counts as 1."""
        ...

    @property
    def memory(self) -> Any:
        """(T,) share of each token's probability that came from remembered answers, or None"""
        ...

    def __len__(self) -> int: ...


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class CapturedTokens:
    """`TokenRows` for a host whose captures stay on the device."""

    request_id: str
    hidden: torch.Tensor
    token_ids: torch.Tensor
    logprobs: torch.Tensor
    temperature: float = 1.0
    memory: torch.Tensor | None = None

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A few tokens of one capture."""

    capture: int
    """index within the batch"""
    start: int
    """first token, counted through the whole batch"""
    stop: int
    key: Key

    def __len__(self) -> int:
        return self.stop - self.start


class Batch:
    """Captures side by side on one device: N tokens in all. `chunk` bounds the tokens of one segment, and with them
    the memory of a slice: about four (chunk, V) float32 arrays. `keys` name the captures' hidden states where
    base logits are kept; without them they are named by their bytes.
    """

    def __init__(
        self,
        captures: Sequence[TokenRows],
        *,
        device: torch.device | str = "cpu",
        chunk: int = CHUNK,
        keys: Sequence[bytes] | None = None,
    ) -> None:
        self.captures = captures
        self.chunk = chunk
        self.hidden = _concatenate([c.hidden for c in captures], None, device)
        """(N, d), in the dtype it was captured in"""
        self.token_ids = _concatenate([c.token_ids for c in captures], torch.int64, device)
        self.logprobs = _concatenate([c.logprobs for c in captures], torch.float32, device)
        self.temperatures = [c.temperature or 1.0 for c in captures]
        self.learned = _learned(captures, device)
        """(N,) bool: what the policy itself decided, and an adapter can learn from; None: every token"""
        self.segments = list(self._cut(keys))

    def __len__(self) -> int:
        return int(self.hidden.shape[0])

    def rows(self, segment: Segment) -> torch.Tensor:
        """(n, d) float32."""
        return self.hidden[segment.start : segment.stop].float()

    def split(self, values: torch.Tensor) -> list[NDArray[np.float32]]:
        """(N,) -> one array a capture."""
        return [part.cpu().numpy() for part in torch.split(values, [len(c) for c in self.captures])]

    def _cut(self, keys: Sequence[bytes] | None) -> Iterator[Segment]:
        offset = 0
        for index, capture in enumerate(self.captures):
            tokens = len(capture)
            name = _digest(self.hidden[offset : offset + tokens]) if keys is None else keys[index]
            for start in range(0, tokens, self.chunk):
                stop = min(start + self.chunk, tokens)
                yield Segment(index, offset + start, offset + stop, (name, start, stop))
            offset += tokens


def groups(segments: Sequence[Segment], chunk: int) -> Iterator[list[Segment]]:
    """Neighbours, at most `chunk` tokens together: short answers share one product with W."""
    group: list[Segment] = []
    for segment in segments:
        if group and sum(map(len, group)) + len(segment) > chunk:
            yield group
            group = []
        group.append(segment)
    if group:
        yield group


def _concatenate(arrays: Sequence[Any], dtype: torch.dtype | None, device: torch.device | str) -> torch.Tensor:
    """One tensor; numpy arrays are copied, so that read-only ones will do."""
    if not any(isinstance(array, torch.Tensor) for array in arrays):
        whole = torch.from_numpy(np.concatenate(arrays))
    else:
        whole = torch.cat([a if isinstance(a, torch.Tensor) else torch.tensor(a, device=device) for a in arrays])
    return whole.to(device=device, dtype=whole.dtype if dtype is None else dtype)


def _learned(captures: Sequence[TokenRows], device: torch.device | str) -> torch.Tensor | None:
    parts = [np.zeros(len(c), np.float32) if c.memory is None else c.memory for c in captures]
    if all(c.memory is None for c in captures) or not parts:
        return None
    return _concatenate(parts, torch.float32, device) <= MEMORY_DECIDED


def _digest(hidden: torch.Tensor) -> bytes:
    return hashlib.blake2b(hidden.contiguous().view(torch.uint8).cpu().numpy().data, digest_size=16).digest()
