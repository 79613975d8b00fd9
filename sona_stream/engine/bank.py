"""The pattern bank: queries gathered into at most `pattern_clusters` patterns, one at a time.

A query joins its nearest pattern, or opens a new one when none is near and there is room. In a full bank a
stranger either joins or makes two others merge, whichever costs less in Ward's sense (increase of the squared
distance to the centroids); near copies merge. Counts decay: instead of shrinking every old count, each new
observation weighs 2^(1/half_life) more than the one before, and the unit is taken out again from time to time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..events import PATTERN_TYPES, PatternType
from ..kernels import Kernels
from .arrays import F32
from .centroids import Centroids
from .pattern import LearnedPattern, RouteStats
from .trajectories import Outcome

__all__ = ["PATTERN_ROW", "PatternBank", "Recorded", "RouteSums", "pattern_type_of"]

_MERGE_SIMILARITY = 0.95
_MAX_MEMORY = 512.0
"""Members after which a centroid keeps moving at a constant rate."""

_MAX_ALIASES = 4096

PATTERN_ROW = np.dtype(
    [
        ("serial", "i8"),
        ("size", "i8"),
        ("weight", "f8"),
        ("length", "f8"),  # mean cosine to the centroid (mean resultant length)
        ("judged", "f8"),
        ("quality", "f8"),
        ("rewarded", "f8"),
        ("reward", "f8"),
        ("votes", "f8", (len(PATTERN_TYPES),)),
        ("created", "f8"),
        ("accessed", "f8"),
        ("hits", "i8"),
    ]
)
_EMPTY = np.zeros((), PATTERN_ROW)
_GENERAL = PATTERN_TYPES.index("General")
RouteSums = NDArray[np.float64]
"""(6,): judged, sum of quality, costed, sum of cost, timed, sum of latency"""


class _Columns(NamedTuple):
    """The fields of the rows, each a view (room,): an element of one costs a third of a field of a row."""

    serial: NDArray[np.int64]
    size: NDArray[np.int64]
    weight: NDArray[np.float64]
    length: NDArray[np.float64]
    judged: NDArray[np.float64]
    quality: NDArray[np.float64]
    rewarded: NDArray[np.float64]
    reward: NDArray[np.float64]
    votes: NDArray[np.float64]
    created: NDArray[np.float64]
    accessed: NDArray[np.float64]
    hits: NDArray[np.int64]


class Recorded(NamedTuple):
    """The pattern a query joined, and what was known there before."""

    serial: int
    quality: float
    judged: float
    reward: float
    rewarded: float


def pattern_type_of(votes: Sequence[float]) -> PatternType:
    """(6,) votes in the order of PATTERN_TYPES -> the type with most of the specific votes; General when that is no
    majority of them or less than the votes for General itself.
    """
    specific = list(votes)
    general, specific[_GENERAL] = specific[_GENERAL], 0.0
    most = max(specific)
    if most <= 0.5 * sum(specific) or most < general:
        return "General"
    return PATTERN_TYPES[specific.index(most)]


class PatternBank:
    """Centroids (unit rows) and a row of statistics for each. Guarded by the engine's lock."""

    def __init__(self, dim: int, limit: int, open_similarity: float, half_life: float, kernels: Kernels) -> None:
        self.dim, self.limit = dim, limit
        self.open_similarity, self.half_life = open_similarity, half_life
        self.kernels = kernels
        self._growth = 2.0 ** (1.0 / half_life)
        self._centroids = Centroids(dim, limit, kernels)
        self._set_rows(np.zeros(min(limit, 16), PATTERN_ROW))
        self.routes: list[dict[str, RouteSums]] = []
        self.unit = 1.0
        self.learned = 0
        """patterns ever opened"""
        self.aliases: dict[int, int] = {}
        """serial of a merged pattern -> the one it went into"""

    def __len__(self) -> int:
        return len(self.routes)

    @property
    def centroids(self) -> F32:
        """(m, e) unit rows; a view"""
        return self._centroids.rows

    @property
    def rows(self) -> NDArray[np.void]:
        """(m,) PATTERN_ROW, counts in units of `unit`; a view"""
        return self._rows[: len(self)]

    def record(self, u: F32, outcome: Outcome) -> Recorded:
        """Unit vector (e,) of one judged query."""
        self._age()
        i = self._place(u)
        of, unit = self._of, self.unit
        judged, quality = of.judged.item(i), of.quality.item(i)
        rewarded, reward = of.rewarded.item(i), of.reward.item(i)
        known = Recorded(
            of.serial.item(i), _mean(quality, judged), judged / unit, _mean(reward, rewarded), rewarded / unit
        )
        of.judged[i] = judged + unit
        of.quality[i] = quality + unit * outcome.quality
        if not math.isnan(outcome.reward):
            of.rewarded[i] = rewarded + unit
            of.reward[i] = reward + unit * outcome.reward
        if outcome.vote >= 0:
            of.votes[i, outcome.vote] += unit * outcome.vote_weight
        if outcome.route is not None:
            self._count_route(i, outcome)
        self._merge_copy(i)
        return known

    def label(self, u: F32, vote: int, weight: float) -> int:
        """A labelled query (e,) without a judgement; -> serial of its pattern."""
        self._age()
        i = self._place(u)
        self._of.votes[i, vote] += self.unit * weight
        serial = self._of.serial.item(i)
        self._merge_copy(i)
        return serial

    def find(self, query: F32, k: int, min_similarity: float | None) -> list[LearnedPattern]:
        """(e,) -> the k nearest, best first, those below `min_similarity` left out."""
        if not len(self) or k == 0 or not float(query @ query) > 0:
            return []
        found, cosines = self.kernels.cosine_topk(self.centroids, query, k)
        now = time.time()
        answer = []
        for i, cosine in zip(found.tolist(), cosines.tolist(), strict=True):
            if min_similarity is not None and cosine < min_similarity:
                break
            row = self._rows[i]
            row["accessed"] = now
            row["hits"] += 1
            answer.append(self._describe(i, cosine))
        return answer

    def listed(self) -> list[LearnedPattern]:
        """All, heaviest first; this counts as no access."""
        return [self._describe(int(i), 1.0) for i in np.argsort(-self.rows["weight"], kind="stable")]

    def resolve(self, serial: int) -> int:
        """The serial under which a merged pattern lives on."""
        while serial in self.aliases:
            serial = self.aliases[serial]
        return serial

    def adopt(self, centroid: F32, row: NDArray[np.void], routes: dict[str, RouteSums]) -> None:
        """Add one pattern with all its statistics, in this bank's unit (the background cycle and snapshots)."""
        i = self._append(centroid)
        self._rows[i] = row
        self.routes[i] = routes

    def take_touches(self, old: PatternBank) -> None:
        """Access counts and times of patterns that live on from `old`, which went on answering meanwhile."""
        place = {int(serial): i for i, serial in enumerate(self.rows["serial"])}
        for row in old.rows:
            i = place.get(self.resolve(int(row["serial"])))
            if i is not None:
                self._rows[i]["hits"] = max(self._rows[i]["hits"], row["hits"])
                self._rows[i]["accessed"] = max(self._rows[i]["accessed"], row["accessed"])

    def merge_copies(self) -> None:
        """Merge every pair that has come too near to each other."""
        for i in range(len(self) - 1, -1, -1):
            if i < len(self):
                self._merge_copy(i)

    def _place(self, u: F32) -> int:
        """Join, or open; -> index."""
        if not len(self):
            return self._open(u, None)
        nearest, cosines = self._centroids.closest(u)
        if cosines[nearest] < self.open_similarity:
            if len(self) < self.limit:
                return self._open(u, cosines)
            room = self._make_room(cosines)
            if room is not None:
                return self._open(u, room)
        self._join(nearest, u, cosines)
        return nearest

    def _join(self, i: int, u: F32, cosines: NDArray[np.float64]) -> None:
        of = self._of
        weight = of.weight.item(i)
        memory = min(weight / self.unit, _MAX_MEMORY)
        norm = self._centroids.join(i, memory * of.length.item(i), u, cosines)
        of.length[i] = norm / (memory + 1.0)
        of.weight[i] = weight + self.unit
        of.size[i] += 1

    def _open(self, u: F32, cosines: NDArray[np.float64] | None) -> int:
        i = self._append(u, cosines)
        of = self._of
        of.serial[i], of.size[i], of.weight[i], of.length[i] = self.learned, 1, self.unit, 1.0
        of.created[i] = of.accessed[i] = time.time()
        self.learned += 1
        return i

    def _append(self, centroid: F32, cosines: NDArray[np.float64] | None = None) -> int:
        i = self._centroids.append(centroid, cosines)
        if i == len(self._rows):
            room = min(self.limit, 2 * i)
            self._set_rows(np.concatenate([self._rows, np.zeros(room - i, PATTERN_ROW)]))
        self._rows[i] = _EMPTY
        self.routes.append({})
        return i

    def _make_room(self, cosines: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Merge the cheapest pair when that costs less than letting the stranger join its cheapest pattern.

        -> (m - 1,) the stranger's cosines to what there is then; None when nothing was merged.
        """
        pair = self._centroids.cheapest_merge(self._of.weight, self._of.length, cosines, self.unit)
        if pair is None:
            return None
        i, a, j, b, norm = self._merge(*pair)
        if norm > 0:
            cosines[i] = (a * cosines[i] + b * cosines[j]) / norm
        cosines[j] = cosines[-1]
        return cosines[:-1]

    def _merge_copy(self, i: int) -> None:
        j, cosine = self._centroids.twin(i)
        if cosine >= _MERGE_SIMILARITY:
            self._merge(i, j)

    def _merge(self, i: int, j: int) -> tuple[int, float, int, float, float]:
        """The heavier of two patterns takes the other in; the last pattern moves into the free place.

        -> heavier, its share, lighter, its share, norm of the sum
        """
        of = self._of
        if of.weight[i] < of.weight[j]:
            i, j = j, i
        a, b = of.weight.item(i) * of.length.item(i), of.weight.item(j) * of.length.item(j)
        norm = self._centroids.merge(i, j, a, b)
        of.length[i] = norm / (of.weight.item(i) + of.weight.item(j))
        for sums in (of.size, of.weight, of.judged, of.quality, of.rewarded, of.reward, of.votes, of.hits):
            sums[i] += sums[j]
        of.created[i] = min(of.created[i], of.created[j])
        of.accessed[i] = max(of.accessed[i], of.accessed[j])
        for route, sums in self.routes[j].items():
            self.routes[i][route] = self.routes[i].get(route, np.zeros(6)) + sums
        self.aliases[of.serial.item(j)] = of.serial.item(i)
        while len(self.aliases) > _MAX_ALIASES:
            del self.aliases[next(iter(self.aliases))]
        self._rows[j], self.routes[j] = self._rows[len(self) - 1], self.routes[-1]
        self.routes.pop()
        return i, a, j, b, norm

    def _set_rows(self, rows: NDArray[np.void]) -> None:
        self._rows = rows
        self._of = _Columns(*(rows[name] for name in _Columns._fields))

    def _count_route(self, i: int, outcome: Outcome) -> None:
        assert outcome.route is not None
        sums = self.routes[i].setdefault(outcome.route, np.zeros(6))
        for at, value in ((0, outcome.quality), (2, outcome.cost), (4, outcome.latency)):
            if not math.isnan(value):
                sums[at] += self.unit
                sums[at + 1] += self.unit * value

    def _age(self) -> None:
        self.unit *= self._growth
        if self.unit > 1e6:
            for field in ("weight", "judged", "quality", "rewarded", "reward", "votes"):
                self._rows[field] /= self.unit
            for routes in self.routes:
                for sums in routes.values():
                    sums /= self.unit
            self.unit = 1.0

    def _describe(self, i: int, similarity: float) -> LearnedPattern:
        serial, size, weight, _, judged, quality, _, _, votes, created, accessed, hits = self._rows[i].item()
        return LearnedPattern(
            id=f"p{serial}",
            centroid=self.centroids[i].copy(),
            cluster_size=size,
            total_weight=weight / self.unit,
            avg_quality=_mean(quality, judged),
            created_at=created,
            last_accessed=accessed,
            access_count=hits,
            pattern_type=pattern_type_of(votes),
            similarity=similarity,
            routes={name: _route_stats(sums.tolist(), self.unit) for name, sums in self.routes[i].items()},
        )


def _route_stats(sums: list[float], unit: float) -> RouteStats:
    judged, quality, costed, cost, timed, latency = sums
    return RouteStats(
        judged / unit, _mean(quality, judged), _mean(cost, costed, math.nan), _mean(latency, timed, math.nan)
    )


def _mean(total: float, count: float, empty: float = 0.0) -> float:
    return float(total / count) if count > 0 else empty
