"""Base logits W h of captured answers, the expensive part of everything that is learned; kept while they fit.

The adapter changes logits by a low-rank term only, logits' = W h + (A h) (W B)^T, so with the base logits at hand
a replay costs no further product with W.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch

from sona_stream.errors import HostError
from sona_stream.lora import Capture

from .linear import linear

__all__ = ["BaseLogits", "Batch", "Prepared", "Segment"]

CHUNK = 64
"""tokens a product with W: about 50 ms for a vocabulary of 50,000 on one core"""

_BLOCK = 1024

Key = tuple[bytes, int, int]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """At most CHUNK tokens of one capture."""

    capture: int
    """index within the batch"""
    start: int
    """first token, counted through the whole batch"""
    stop: int
    key: Key

    def __len__(self) -> int:
        return self.stop - self.start


class Batch:
    """Captures side by side: N tokens in all."""

    def __init__(self, captures: Sequence[Capture]) -> None:
        self.captures = captures
        self.hidden = torch.from_numpy(np.concatenate([c.hidden for c in captures], dtype=np.float32))
        """(N, d)"""
        self.token_ids = torch.from_numpy(np.concatenate([c.token_ids for c in captures]).astype(np.int64))
        self.logprobs = torch.from_numpy(np.concatenate([c.logprobs for c in captures], dtype=np.float32))
        self.inverse_temperatures = [1.0 / (c.temperature or 1.0) for c in captures]
        self.segments = list(self._cut())

    def __len__(self) -> int:
        return int(self.hidden.shape[0])

    def split(self, values: torch.Tensor) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        """(N,) -> one array a capture."""
        return [part.numpy() for part in torch.split(values, [len(c) for c in self.captures])]

    def _cut(self) -> Iterator[Segment]:
        offset = 0
        for index, capture in enumerate(self.captures):
            digest = hashlib.blake2b(np.ascontiguousarray(capture.hidden).data, digest_size=16).digest()
            for start in range(0, len(capture), CHUNK):
                stop = min(start + CHUNK, len(capture))
                yield Segment(index, offset + start, offset + stop, (digest, start, stop))
            offset += len(capture)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What a pass over a batch needs: the rows of W in play and the labels among them."""

    batch: Batch
    weight: torch.Tensor
    """(v, d): W, or the kept rows of it"""
    bias: torch.Tensor | None
    rows: torch.Tensor | None
    """(v,) kept rows in ascending order; None = all"""
    labels: torch.Tensor
    """(N,) index of each token into `weight`"""

    def project(self, B: torch.Tensor) -> torch.Tensor:
        """(d, q) -> (q, v): W B, transposed so that each row is contiguous, and centred over the vocabulary.

        A softmax does not see what is common to all logits, but its rounding does: rows of W have a large mean.
        """
        product = (self.weight @ B).T.contiguous()
        return product.sub_(product.mean(1, keepdim=True))

    def collect(self, rows: torch.Tensor) -> torch.Tensor:
        """(q, v) -> (d, q): W^T times `rows`, transposed. In blocks summed in double: 50,000 terms one after the
        other in single precision would cost three digits.
        """
        total = torch.zeros(rows.shape[0], self.weight.shape[1], dtype=torch.float64)
        for part, weight in zip(torch.split(rows, _BLOCK, dim=1), torch.split(self.weight, _BLOCK), strict=True):
            total += part @ weight
        return total.float().T


class BaseLogits:
    """Computes and caches (W h)[tokens, rows]. All methods run in the torch thread; generators yield None at each
    point where a slice may end.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        max_bytes: int,
        packed: torch.Tensor | None = None,
    ) -> None:
        """`weight` (V, d), and once more `packed` for products, when there is such a copy."""
        self._weight = weight
        self._packed = weight if packed is None else packed
        self._bias = bias
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[Key, torch.Tensor] = OrderedDict()
        self._likeliest: OrderedDict[tuple[Key, int], torch.Tensor] = OrderedDict()
        self._last: tuple[object, Prepared, dict[Key, torch.Tensor]] | None = None

    def prepare(self, batch: Batch, top_k: int | None) -> Generator[None, None, Prepared]:
        """Choose the rows: all, or the union of the labels and each position's `top_k` likeliest tokens under the
        base model.
        """
        vocabulary = self._weight.shape[0]
        if int(batch.token_ids.max()) >= vocabulary or int(batch.token_ids.min()) < 0:
            raise HostError(f"token_ids: a token is outside the vocabulary of {vocabulary}")
        if top_k is None or top_k >= vocabulary:
            return Prepared(batch, self._weight, self._bias, None, batch.token_ids)
        identity = (tuple(s.key for s in batch.segments), batch.token_ids.numpy().tobytes(), top_k)
        if self._last is not None and self._last[0] == identity:
            return self._last[1]
        rows = yield from self._union(batch, top_k)
        bias = None if self._bias is None else self._bias[rows]
        prepared = Prepared(batch, self._weight[rows], bias, rows, torch.searchsorted(rows, batch.token_ids))
        self._last = (identity, prepared, {})
        return prepared

    def segments(self, prepared: Prepared) -> Iterator[tuple[Segment, torch.Tensor]]:
        """Each segment with its base logits (n, v), which must not be written to."""
        for group in _groups(prepared.batch.segments):
            known = self._look_up(group, prepared)
            missing = [segment for segment in group if segment.key not in known]
            if missing:
                known |= self._compute(missing, prepared)
            yield from ((segment, known[segment.key]) for segment in group)

    def _look_up(self, group: list[Segment], prepared: Prepared) -> dict[Key, torch.Tensor]:
        if prepared.rows is None:
            return {s.key: self._touch(s.key) for s in group if s.key in self._kept}
        memo = self._memo(prepared)
        found = {s.key: memo[s.key] for s in group if s.key in memo}
        for segment in group:
            if segment.key not in found and segment.key in self._kept:
                found[segment.key] = self._touch(segment.key).index_select(1, prepared.rows)
                self._remember(memo, segment.key, found[segment.key])
        return found

    def _compute(self, missing: list[Segment], prepared: Prepared) -> dict[Key, torch.Tensor]:
        hidden = torch.cat([prepared.batch.hidden[s.start : s.stop] for s in missing])
        weight = self._packed if prepared.rows is None else prepared.weight
        logits = linear(hidden, weight, prepared.bias)
        parts = dict(zip([s.key for s in missing], torch.split(logits, [len(s) for s in missing]), strict=True))
        for key, part in parts.items():
            if prepared.rows is None:
                self._keep(key, part, whole=len(parts) == 1)
            else:
                self._remember(self._memo(prepared), key, part)
        return parts

    def _memo(self, prepared: Prepared) -> dict[Key, torch.Tensor]:
        """Cut logits of the last batch alone: a step asks for its gradient, then for its predicted KL."""
        return self._last[2] if self._last is not None and self._last[1] is prepared else {}

    def _remember(self, memo: dict[Key, torch.Tensor], key: Key, part: torch.Tensor) -> None:
        if (sum(value.shape[0] for value in memo.values()) + part.shape[0]) * part.shape[
            1
        ] * 4 <= self._max_bytes // 4:
            memo[key] = part

    def _union(self, batch: Batch, top_k: int) -> Generator[None, None, torch.Tensor]:
        wanted = torch.zeros(self._weight.shape[0], dtype=torch.bool)
        wanted[batch.token_ids] = True
        unknown = [s for s in batch.segments if (s.key, top_k) not in self._likeliest]
        for group in _groups(unknown):
            whole = Prepared(batch, self._weight, self._bias, None, batch.token_ids)
            known = self._look_up(group, whole)
            missing = [segment for segment in group if segment.key not in known]
            known |= self._compute(missing, whole) if missing else {}
            for segment in group:
                ids = torch.topk(known[segment.key], top_k, dim=1, sorted=False).indices
                self._likeliest[segment.key, top_k] = torch.unique(ids).int()
            yield
        for segment in batch.segments:
            wanted[self._likeliest[segment.key, top_k]] = True
            self._likeliest.move_to_end((segment.key, top_k))
        while len(self._likeliest) > max(2048, 2 * len(batch.segments)):
            self._likeliest.popitem(last=False)
        return wanted.nonzero()[:, 0]

    def _touch(self, key: Key) -> torch.Tensor:
        self._kept.move_to_end(key)
        return self._kept[key]

    def _keep(self, key: Key, part: torch.Tensor, *, whole: bool) -> None:
        size = part.numel() * 4
        if size > self._max_bytes or key in self._kept:
            return
        self._kept[key] = part if whole else part.clone()  # a view would keep its neighbours alive
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, gone = self._kept.popitem(last=False)
            self._bytes -= gone.numel() * 4


def _groups(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Neighbours, at most CHUNK tokens together: short answers share one product with W."""
    group: list[Segment] = []
    for segment in segments:
        if group and sum(map(len, group)) + len(segment) > CHUNK:
            yield group
            group = []
        group.append(segment)
    if group:
        yield group
