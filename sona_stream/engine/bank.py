"""The pattern bank: queries gathered into at most `pattern_clusters` patterns, one at a time.

A query joins its nearest pattern, or opens a new one when none is near and there is room. In a full bank a
stranger either joins or makes two others merge, whichever costs less in Ward's sense (increase of the squared
distance to the centroids); near copies merge. Counts decay: instead of shrinking every old count, each new
observation weighs 2^(1/half_life) more than the one before, and the unit is taken out again from time to time.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..events import PATTERN_TYPES, PatternType
from ..kernels import Kernels
from .arrays import F32
from .pattern import LearnedPattern, RouteStats
from .trajectories import Outcome

__all__ = ["PATTERN_ROW", "PatternBank", "Recorded", "RouteSums", "pattern_type_of"]

_MERGE_SIMILARITY = 0.95
_WARD_LIMIT = 256
"""In a larger bank the pairwise search is left to the background cycle."""
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
_GENERAL = PATTERN_TYPES.index("General")
RouteSums = NDArray[np.float64]
"""(6,): judged, sum of quality, costed, sum of cost, timed, sum of latency"""


@dataclasses.dataclass(frozen=True, slots=True)
class Recorded:
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
        room = min(limit, 16)
        self._centroids = np.zeros((room, dim), np.float32)
        self._rows = np.zeros(room, PATTERN_ROW)
        self._gram = np.zeros((room, room), np.float32)
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
        return self._centroids[: len(self)]

    @property
    def rows(self) -> NDArray[np.void]:
        """(m,) PATTERN_ROW, counts in units of `unit`; a view"""
        return self._rows[: len(self)]

    def record(self, u: F32, outcome: Outcome) -> Recorded:
        """Unit vector (e,) of one judged query."""
        self._age()
        i = self._place(u)
        row = self._rows[i]
        known = Recorded(
            int(row["serial"]),
            _mean(row["quality"], row["judged"]),
            float(row["judged"]) / self.unit,
            _mean(row["reward"], row["rewarded"]),
            float(row["rewarded"]) / self.unit,
        )
        row["judged"] += self.unit
        row["quality"] += self.unit * outcome.quality
        if not math.isnan(outcome.reward):
            row["rewarded"] += self.unit
            row["reward"] += self.unit * outcome.reward
        if outcome.vote >= 0:
            row["votes"][outcome.vote] += self.unit * outcome.vote_weight
        if outcome.route is not None:
            self._count_route(i, outcome)
        self._merge_copy(i)
        return known

    def label(self, u: F32, vote: int, weight: float) -> int:
        """A labelled query (e,) without a judgement; -> serial of its pattern."""
        self._age()
        i = self._place(u)
        self._rows[i]["votes"][vote] += self.unit * weight
        serial = int(self._rows[i]["serial"])
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
            return self._open(u)
        cosines = self.kernels.scores(self.centroids, u)
        nearest = int(cosines.argmax())
        if cosines[nearest] < self.open_similarity:
            if len(self) < self.limit:
                return self._open(u)
            if self.limit > 1 and len(self) <= _WARD_LIMIT and self._make_room(cosines):
                return self._open(u)
        self._join(nearest, u)
        return nearest

    def _join(self, i: int, u: F32) -> None:
        row = self._rows[i]
        memory = min(float(row["weight"]) / self.unit, _MAX_MEMORY)
        moved = self._centroids[i] * np.float32(memory * float(row["length"])) + u
        length = math.sqrt(float(moved @ moved))
        if length > 0:
            self._centroids[i] = moved / np.float32(length)
        row["length"] = length / (memory + 1.0)
        row["weight"] += self.unit
        row["size"] += 1
        self._refresh_gram(i)

    def _open(self, u: F32) -> int:
        i = self._append(u)
        now = time.time()
        row = self._rows[i]
        row["serial"], row["size"], row["weight"], row["length"] = self.learned, 1, self.unit, 1.0
        row["created"] = row["accessed"] = now
        self.learned += 1
        return i

    def _append(self, centroid: F32) -> int:
        i = len(self)
        if i == len(self._rows):
            room = min(self.limit, 2 * i)
            self._centroids = np.concatenate([self._centroids, np.zeros((room - i, self.dim), np.float32)])
            self._rows = np.concatenate([self._rows, np.zeros(room - i, PATTERN_ROW)])
            if room <= _WARD_LIMIT:
                self._gram = np.pad(self._gram, (0, room - i))
        self._centroids[i] = centroid
        self._rows[i] = np.zeros((), PATTERN_ROW)
        self.routes.append({})
        self._refresh_gram(i)
        return i

    def _refresh_gram(self, i: int) -> None:
        m = len(self)
        if m <= len(self._gram):
            self._gram[i, :m] = self._gram[:m, i] = self.kernels.scores(self.centroids, self._centroids[i])

    def _make_room(self, cosines: F32) -> bool:
        """Merge the cheapest pair when that costs less than letting the stranger join its cheapest pattern."""
        m = len(self)
        weight = self.rows["weight"] / self.unit
        length = self.rows["length"]
        join = weight / (weight + 1) * (1 + length**2 - 2 * length * cosines)
        pair = np.multiply.outer(weight, weight) / np.add.outer(weight, weight)
        pair *= np.add.outer(length**2, length**2) - 2 * np.multiply.outer(length, length) * self._gram[:m, :m]
        np.fill_diagonal(pair, np.inf)
        i, j = divmod(int(pair.argmin()), m)
        if pair[i, j] >= join.min():
            return False
        self._merge(i, j)
        return True

    def _merge_copy(self, i: int) -> None:
        m = len(self)
        if m < 2 or m > len(self._gram):
            return
        near = self._gram[i, :m].copy()
        near[i] = -1.0
        j = int(near.argmax())
        if near[j] >= _MERGE_SIMILARITY:
            self._merge(i, j)

    def _merge(self, i: int, j: int) -> None:
        """The heavier of two patterns takes the other in; the last pattern moves into the free place."""
        if self._rows[i]["weight"] < self._rows[j]["weight"]:
            i, j = j, i
        into, gone = self._rows[i], self._rows[j]
        a, b = float(into["weight"] * into["length"]), float(gone["weight"] * gone["length"])
        moved = np.float32(a) * self._centroids[i] + np.float32(b) * self._centroids[j]
        norm = math.sqrt(float(moved @ moved))
        if norm > 0:
            self._centroids[i] = moved / np.float32(norm)
        into["length"] = norm / float(into["weight"] + gone["weight"])
        for field in ("size", "weight", "judged", "quality", "rewarded", "reward", "votes", "hits"):
            into[field] += gone[field]
        into["created"] = min(into["created"], gone["created"])
        into["accessed"] = max(into["accessed"], gone["accessed"])
        for route, sums in self.routes[j].items():
            self.routes[i][route] = self.routes[i].get(route, np.zeros(6)) + sums
        self.aliases[int(gone["serial"])] = int(into["serial"])
        while len(self.aliases) > _MAX_ALIASES:
            del self.aliases[next(iter(self.aliases))]
        self._refresh_gram(i)
        self._remove(j)

    def _remove(self, j: int) -> None:
        last = len(self) - 1
        self._centroids[j], self._rows[j], self.routes[j] = (
            self._centroids[last],
            self._rows[last],
            self.routes[last],
        )
        if last < len(self._gram):
            self._gram[j], self._gram[:, j] = self._gram[last], self._gram[:, last]
            self._gram[j, j] = 1.0
        self.routes.pop()

    def _count_route(self, i: int, outcome: Outcome) -> None:
        assert outcome.route is not None
        sums = self.routes[i].setdefault(outcome.route, np.zeros(6))
        for at, value in ((0, outcome.quality), (2, outcome.cost), (4, outcome.latency)):
            if not math.isnan(value):
                sums[at] += self.unit
                sums[at + 1] += self.unit * value

    def _age(self) -> None:
        self.unit *= 2.0 ** (1.0 / self.half_life)
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
            centroid=self._centroids[i].copy(),
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
