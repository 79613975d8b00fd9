"""Which rows of a step belong to whom, as index tensors. Built when the batch changes, used until it does again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..episodes import ActiveEpisodes, EpisodeStore
from .adapters import Adapter, AdapterTable
from .native import NativeStep, NativeSteps
from .requests import Tracked

__all__ = ["Adapted", "Captured", "Mixed", "Plan", "Planner"]


@dataclasses.dataclass(slots=True, eq=False)
class Adapted:
    """The rows that adapters change. All factors lie side by side: Z = h A^T holds every adapter's products, those
    of a row's strangers are set to zero, and Z B is the change.
    """

    rows: torch.Tensor | None
    """(n,) int64; None: every row of the step"""
    count: int
    A: torch.Tensor
    """(d, Q) float32, Q the ranks of all adapters in the batch"""
    B: torch.Tensor
    """(Q, d) float32"""
    strangers: torch.Tensor | None
    """(n, Q) bool, True where a column is not the row's own; None when there is one adapter"""
    bounded: bool
    """no row can exceed the norm cap, so none needs to be measured"""


@dataclasses.dataclass(slots=True, eq=False)
class Captured:
    """The rows that the ring takes."""

    rows: torch.Tensor | None
    """(n,) int64; None: every row of the step"""
    count: int
    owners: list[tuple[Tracked, int]]
    """each request with its number of rows, in order"""
    requests: torch.Tensor
    """(n,) int64: index of the row's request in the batch"""
    drafts: torch.Tensor | None
    """(n,) int64: place of the row's token among its request's; None: all 0"""
    now: list[int]
    """places among these rows whose log-probabilities must be taken in the step: the logits are not those that
    the lm_head would say again"""
    now_rows: torch.Tensor | None
    """(m,) int64: their rows in the step; None when there are none"""
    now_inverse_t: torch.Tensor | None
    """(m, 1) float32 1 / temperature; None when there are none"""
    versions: np.ndarray[tuple[int], np.dtype[np.int32]]
    """(n,) adapter version, 0 = none"""
    adapted: bool = False
    """adapters change some of them, or their neighbours in the step"""
    cuttable: bool = False
    """some of those may be cut to the norm cap"""
    owned: bool = False
    """whether a step of this plan was seen to make tensors of its own, as its next ones will; not parts of a larger
    buffer that the next step writes to"""


@dataclasses.dataclass(slots=True, eq=False)
class Mixed:
    """The rows of one request that names episodes which are here."""

    rows: torch.Tensor
    """(m,) int64"""
    places: list[int]
    """the same on the host"""
    episodes: ActiveEpisodes
    tracked: Tracked
    index: int
    """of the request in the batch"""


@dataclasses.dataclass(slots=True, eq=False)
class Plan:
    """One step."""

    rows: int
    adapted: Adapted | None
    """None with `native`, which does this work"""
    captured: Captured | None
    mixed: list[Mixed]
    missing: int
    """rows whose request names an adapter that is not here"""
    away: list[str]
    """capture ids of those requests that draw tokens now, but where it was dropped on purpose"""
    served: int
    """rows that adapters change"""
    lost: int
    """rows that the ring is too short for"""
    native: NativeStep | None
    """adapts, and writes the states to the ring"""
    reads_logits: bool
    """something has to be done when the logits are there"""


class _Taker(NamedTuple):
    """A request whose rows the ring takes; `place` is its own in the batch."""

    tracked: Tracked
    place: int
    rows: range
    version: int
    now: bool


class Planner:
    """Builds plans and keeps the last one."""

    def __init__(
        self,
        table: AdapterTable,
        episodes: EpisodeStore,
        max_delta: float,
        device: torch.device,
        *,
        longest: int,
        native: NativeSteps | None = None,
    ) -> None:
        """At most `longest` rows of a step are captured. `native` where the compiled kernel takes the steps."""
        self._table, self._episodes = table, episodes
        self._max_delta, self._device, self._longest = max_delta, device, longest
        self.native = native
        self._plan: Plan | None = None
        self._request_ids: list[str] = []
        self._counts: list[int] | None = None
        self._generations = (-1, -1)

    def forget(self) -> None:
        """The next plan is built anew."""
        self._plan = None

    def plan(
        self, live: dict[str, Tracked], request_ids: Sequence[str], counts: Sequence[int] | None, *, changed: bool
    ) -> Plan:
        """`request_ids` in the batch's order, `counts` their numbers of rows (None: one each)."""
        plan, generations = self._plan, (self._table.generation, self._episodes.generation)
        if (
            plan is None
            or changed
            or self._request_ids != request_ids
            or self._counts != counts
            or self._generations != generations
        ):
            plan = self._plan = self._build(live, request_ids, counts)
            self._request_ids, self._generations = list(request_ids), generations
            self._counts = None if counts is None else list(counts)
        return plan

    def again(self, live: dict[str, Tracked]) -> Plan:
        """The last one, built anew."""
        self._plan = plan = self._build(live, self._request_ids, self._counts)
        return plan

    def _build(self, live: dict[str, Tracked], request_ids: Sequence[str], counts: Sequence[int] | None) -> Plan:
        users: list[tuple[Adapter, range]] = []
        takers: list[_Taker] = []
        mixed: list[Mixed] = []
        away: list[str] = []
        first = missing = 0
        for index, request_id in enumerate(request_ids):
            rows = range(first, first + (1 if counts is None else counts[index]))
            first = rows.stop
            tracked = live.get(request_id)
            if tracked is None or not rows:
                continue
            binding, version = tracked.binding, 0
            if binding.key is not None:
                adapter = self._table.find(binding.key, binding.version)
                if adapter is None:
                    missing += len(rows)
                    if binding.rid is not None and tracked.settled:
                        away += [] if self._table.was_dropped(binding.key, binding.version) else [binding.rid]
                else:
                    version = adapter.version
                    users.append((adapter, rows))
            remembers = False
            if binding.episodes:
                active = tracked.active = self._episodes.activate(
                    binding.episodes, binding.gates, tracked.active, shares=binding.shares
                )
                if active is not None:
                    mixed.append(Mixed(self._index(list(rows)), list(rows), active, tracked, index))
                    remembers = True
            if binding.rid is not None and binding.teach is None and tracked.settled:
                takers.append(_Taker(tracked, index, rows, version, remembers or tracked.foreign))
        picked = [row for one in takers for row in one.rows]
        lost = len(picked) if len(picked) > self._longest else 0
        if lost:
            takers, picked = [], []
        served = sum(len(rows) for _, rows in users)
        captured, adapted, native = self._captured(takers, first), None, None
        if captured is not None:
            captured.adapted = served > 0
            captured.cuttable = any(adapter.gain > self._max_delta for adapter, _ in users)
        if self.native is not None and (served or picked):
            native = self.native.step(first, users, picked)
        else:
            adapted = self._adapted(users, first)
        reads = bool(mixed) or (captured is not None and captured.now_rows is not None)
        return Plan(first, adapted, captured, mixed, missing, away, served, lost, native, reads)

    def _adapted(self, users: list[tuple[Adapter, range]], total: int) -> Adapted | None:
        if not users:
            return None
        columns: dict[int, tuple[Adapter, int]] = {}
        width = 0
        for adapter, _ in users:
            if id(adapter) not in columns:
                columns[id(adapter)] = (adapter, width)
                width += adapter.A.shape[0]
        adapters = [adapter for adapter, _ in columns.values()]
        rows = [row for _, own in users for row in own]
        strangers = None
        if len(adapters) > 1:
            table = np.ones((len(rows), width), bool)
            at = 0
            for adapter, own in users:
                start = columns[id(adapter)][1]
                table[at : at + len(own), start : start + adapter.A.shape[0]] = False
                at += len(own)
            strangers = torch.from_numpy(table).to(self._device)
        return Adapted(
            rows=None if len(rows) == total else self._index(rows),
            count=len(rows),
            A=_joined([adapter.A for adapter in adapters]).T,
            B=_joined([adapter.B for adapter in adapters]),
            strangers=strangers,
            bounded=all(adapter.gain <= self._max_delta for adapter in adapters),
        )

    def _captured(self, takers: list[_Taker], total: int) -> Captured | None:
        if not takers:
            return None
        rows = [row for one in takers for row in one.rows]
        owners = [one for one in takers for _ in one.rows]
        drafts = [row - one.rows.start for one in takers for row in one.rows]
        now = [place for place, one in enumerate(owners) if one.now]
        return Captured(
            rows=None if len(rows) == total else self._index(rows),
            count=len(rows),
            owners=[(one.tracked, len(one.rows)) for one in takers],
            requests=self._index([one.place for one in owners]),
            drafts=self._index(drafts) if any(drafts) else None,
            now=now,
            now_rows=self._index([rows[place] for place in now]) if now else None,
            now_inverse_t=self._column([1.0 / (owners[place].tracked.temperature or 1.0) for place in now])
            if now
            else None,
            versions=np.asarray([one.version for one in owners], np.int32),
        )

    def _column(self, values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)[:, None]

    def _index(self, values: list[int]) -> torch.Tensor:
        index = torch.tensor(values, dtype=torch.int64, pin_memory=self._device.type == "cuda")
        return index.to(self._device, non_blocking=True)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
