"""Base logits W h of captured answers, the expensive part of everything that is learned; kept while they fit.

The adapter changes raw logits by a low-rank term only, raw' = W h + (A h) (W B)^T, so with the base logits at hand
a replay costs no further product with W.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Generator, Iterator

import torch

from sona_stream.errors import HostError

from .batch import Batch, Key, Segment, groups
from .heads import Head
from .prepared import Prepared
from .weight_rows import WeightRows

__all__ = ["BaseLogits"]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Cut:
    """What was kept of the vocabulary for the last batch."""

    identity: object
    rows: WeightRows
    kept: torch.Tensor
    memo: dict[Key, torch.Tensor]


class BaseLogits:
    """Computes and caches raw base logits (n, v) of one head. Belongs to one thread; generators yield None at each
    point where a slice may end. A model whose weights were replaced needs a new one.
    """

    def __init__(self, head: Head, *, max_bytes: int) -> None:
        """`max_bytes` of base logits are kept between calls; 0 keeps nothing."""
        self.head = head
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[Key, torch.Tensor] = OrderedDict()
        self._likeliest: OrderedDict[tuple[Key, int], torch.Tensor] = OrderedDict()
        self._last: _Cut | None = None

    def prepare(self, batch: Batch, top_k: int | None) -> Generator[None, None, Prepared]:
        """Choose the rows: all, or the union of the labels and each position's `top_k` likeliest tokens under the
        base model. Raises HostError for a token that is none.
        """
        vocabulary = self.head.vocab_size
        if int(batch.token_ids.max()) >= vocabulary or int(batch.token_ids.min()) < 0:
            raise HostError(f"token_ids: a token is outside the vocabulary of {vocabulary}")
        kept = self.head.kept(top_k)
        if kept is None:
            return self._whole(batch)
        identity = (tuple(s.key for s in batch.segments), batch.token_ids.cpu().numpy().tobytes(), kept)
        if self._last is None or self._last.identity != identity:
            ids = yield from self._union(batch, kept)
            rows = yield from self.head.rows(ids)
            self._last = _Cut(identity, rows, ids, {})
        cut = self._last
        if cut.rows.weight.nbytes > self._max_bytes:
            self._last = None
        return Prepared(self.head, batch, cut.rows, cut.kept)

    def segments(self, prepared: Prepared) -> Iterator[tuple[Segment, torch.Tensor]]:
        """Each segment with its raw base logits (n, v), which must not be written to."""
        for group in groups(prepared.batch.segments, prepared.batch.chunk):
            known = self._look_up(group, prepared)
            missing = [segment for segment in group if segment.key not in known]
            if missing:
                known |= self._compute(missing, prepared)
            yield from ((segment, known[segment.key]) for segment in group)

    def _whole(self, batch: Batch) -> Prepared:
        rows = self.head.whole
        assert rows is not None
        return Prepared(self.head, batch, rows, None)

    def _look_up(self, group: list[Segment], prepared: Prepared) -> dict[Key, torch.Tensor]:
        if prepared.kept is None:
            return {s.key: self._touch(s.key) for s in group if s.key in self._kept}
        memo = self._memo(prepared)
        found = {s.key: memo[s.key] for s in group if s.key in memo}
        for segment in group:
            if segment.key not in found and segment.key in self._kept:
                found[segment.key] = self._touch(segment.key).index_select(1, prepared.kept)
                self._remember(memo, segment.key, found[segment.key])
        return found

    def _compute(self, missing: list[Segment], prepared: Prepared) -> dict[Key, torch.Tensor]:
        logits = prepared.rows.logits(_hidden(prepared.batch, missing))
        parts = dict(zip([s.key for s in missing], torch.split(logits, [len(s) for s in missing]), strict=True))
        for key, part in parts.items():
            if prepared.kept is None:
                self._keep(key, part, whole=len(parts) == 1)
            else:
                self._remember(self._memo(prepared), key, part)
        return parts

    def _memo(self, prepared: Prepared) -> dict[Key, torch.Tensor]:
        """Cut logits of the last batch alone: a step asks for its gradient, then for its predicted KL."""
        return self._last.memo if self._last is not None and self._last.kept is prepared.kept else {}

    def _remember(self, memo: dict[Key, torch.Tensor], key: Key, part: torch.Tensor) -> None:
        tokens = sum(value.shape[0] for value in memo.values()) + part.shape[0]
        if tokens * part.shape[1] * 4 <= self._max_bytes // 4:
            memo[key] = part

    def _union(self, batch: Batch, top_k: int) -> Generator[None, None, torch.Tensor]:
        """(v,) local ids, ascending."""
        shard = self.head.shard
        wanted = torch.zeros(len(shard), dtype=torch.bool, device=batch.hidden.device)
        labels = batch.token_ids - shard.start
        wanted[labels[(labels >= 0) & (labels < len(shard))]] = True
        found = {s.key: self._likeliest[s.key, top_k] for s in batch.segments if (s.key, top_k) in self._likeliest}
        for group in groups([s for s in batch.segments if s.key not in found], batch.chunk):
            ranked = self._ranked(batch, group)
            for segment in group:
                found[segment.key] = self._top(ranked[segment.key], top_k)
            yield
        for segment in batch.segments:
            wanted[found[segment.key]] = True
            self._likeliest[segment.key, top_k] = found[segment.key]
            self._likeliest.move_to_end((segment.key, top_k))
        while len(self._likeliest) > max(2048, 2 * len(batch.segments)):
            self._likeliest.popitem(last=False)
        return wanted.nonzero()[:, 0]

    def _ranked(self, batch: Batch, group: list[Segment]) -> dict[Key, torch.Tensor]:
        if self.head.whole is not None:
            whole = self._whole(batch)
            known = self._look_up(group, whole)
            missing = [segment for segment in group if segment.key not in known]
            return known | self._compute(missing, whole) if missing else known
        ranked = self.head.ranked(_hidden(batch, group))
        return dict(zip([s.key for s in group], torch.split(ranked, [len(s) for s in group]), strict=True))

    def _top(self, logits: torch.Tensor, top_k: int) -> torch.Tensor:
        """Local ids of the tokens that are among any row's `top_k` of the whole vocabulary."""
        values, ids = torch.topk(logits, min(top_k, logits.shape[1]), dim=1, sorted=False)
        shard = self.head.shard
        if not shard.alone:
            slots = values.new_full((values.shape[0], top_k), -torch.inf)
            slots[:, : values.shape[1]] = values
            least = torch.topk(shard.gather(slots), top_k, dim=1).values[:, -1:]
            ids = ids[values >= least]
        likeliest: torch.Tensor = torch.unique(ids).int()
        return likeliest

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


def _hidden(batch: Batch, group: list[Segment]) -> torch.Tensor:
    """(n, d), in the dtype it was captured in."""
    return torch.cat([batch.hidden[s.start : s.stop] for s in group])
