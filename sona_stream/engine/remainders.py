"""The book-keeping of re-gathering: what patterns hold apart from this cycle's queries, and the new rows' sums."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import F32
from .bank import PATTERN_ROW, PatternBank, RouteSums
from .trajectories import TrajectoryBuffer

__all__ = ["BankCopy", "Remainders", "assemble", "remainders"]

_LEAST = 1e-6
"""What a pattern's older queries weigh at least, in units, while there are any."""
_SUMS = ("size", "weight", "judged", "quality", "rewarded", "reward", "votes")
Routes = list[dict[str, RouteSums]]


class BankCopy:
    """The bank as it was when the cycle's trajectories were taken out of the buffer."""

    def weights(self, n: int) -> NDArray[np.float64]:
        """(n,) what each of the newest n queries weighs by now: every later one has aged it."""
        return np.asarray(self.unit * 2.0 ** (-np.arange(n - 1, -1, -1) / self.half_life))

    def __init__(self, bank: PatternBank) -> None:
        self.centroids: F32 = bank.centroids.copy()
        self.rows = bank.rows.copy()
        self.routes: Routes = [{name: sums.copy() for name, sums in routes.items()} for routes in bank.routes]
        self.unit, self.learned, self.aliases = bank.unit, bank.learned, dict(bank.aliases)
        self.full = len(bank) >= bank.limit
        self.half_life = bank.half_life
        self.place = {int(serial): i for i, serial in enumerate(self.rows["serial"])}

    def resolve(self, serial: int) -> int:
        """The serial a pattern lives on under; -1 when it is not in this copy."""
        while serial in self.aliases:
            serial = self.aliases[serial]
        return serial if serial in self.place else -1


@dataclasses.dataclass(slots=True)
class Remainders:
    """Each pattern minus its queries of this cycle."""

    rows: NDArray[Any]
    routes: Routes


def remainders(
    copy: BankCopy, records: NDArray[Any], online: NDArray[np.int64], buffer: TrajectoryBuffer
) -> Remainders:
    """`records` (n,) with `online` (n,) the serial each one joined -> what is left of every pattern."""
    rows = copy.rows.copy()
    routes: Routes = [{name: sums.copy() for name, sums in each.items()} for each in copy.routes]
    at = np.array([copy.place[int(serial)] for serial in online], dtype=np.int64)
    weights = copy.weights(len(records))
    _add(rows, at, records, -weights, -1)
    _add_routes(routes, at, records, buffer, -weights)
    # Labels age queries too, so sums may end below zero by a little; sizes are exact.
    gone = rows["size"] <= 0
    for name in _SUMS:
        rows[name][gone] = 0
        np.maximum(rows[name], 0, out=rows[name])
    rows["weight"] = np.where(gone, 0.0, np.maximum(rows["weight"], _LEAST * copy.unit))
    rows["quality"] = np.minimum(rows["quality"], rows["judged"])
    for i, each in enumerate(routes):
        for sums in each.values():
            np.maximum(sums, 0.0, out=sums)
            if gone[i]:
                sums[:] = 0.0
    return Remainders(rows, routes)


def assemble(
    bank: PatternBank,
    copy: BankCopy,
    left: Remainders,
    records: NDArray[Any],
    online: NDArray[np.int64],
    centroids: F32,
    labels: NDArray[np.int64],
    cosines: F32,
    buffer: TrajectoryBuffer,
) -> NDArray[np.int64]:
    """Fill an empty `bank`; labels and cosines: of the n queries, then of the remainders. -> (n,) serials"""
    n, k = len(records), len(centroids)
    rows = np.zeros(k, PATTERN_ROW)
    routes: Routes = [{} for _ in range(k)]
    of_rest = labels[n:]
    for name in _SUMS:
        np.add.at(rows[name], of_rest, left.rows[name])
    for i, each in enumerate(left.routes):
        for route, sums in each.items():
            routes[of_rest[i]][route] = routes[of_rest[i]].get(route, np.zeros(6)) + sums
    weights = copy.weights(n)
    _add(rows, labels[:n], records, weights, 1)
    _add_routes(routes, labels[:n], records, buffer, weights)
    _lengths(rows, left.rows, labels, cosines, weights)
    bank.unit, bank.aliases = copy.unit, dict(copy.aliases)
    _name(rows, bank, copy, left.rows["weight"], online, labels)
    for c in range(k):
        if rows["weight"][c] > 0:
            bank.adopt(centroids[c], rows[c], routes[c])
    serials = rows["serial"][labels[:n]]
    bank.merge_copies()
    return np.array([bank.resolve(int(serial)) for serial in serials], dtype=np.int64)


def _add(
    rows: NDArray[Any], at: NDArray[np.int64], records: NDArray[Any], weights: NDArray[np.float64], one: int
) -> None:
    np.add.at(rows["size"], at, one)
    np.add.at(rows["weight"], at, weights)
    np.add.at(rows["judged"], at, weights)
    np.add.at(rows["quality"], at, weights * records["quality"])
    rewarded = ~np.isnan(records["reward"])
    np.add.at(rows["rewarded"], at[rewarded], weights[rewarded])
    np.add.at(rows["reward"], at[rewarded], weights[rewarded] * records["reward"][rewarded])
    voted = records["vote"] >= 0
    np.add.at(rows["votes"], (at[voted], records["vote"][voted]), weights[voted] * records["vote_weight"][voted])


def _add_routes(
    routes: Routes,
    at: NDArray[np.int64],
    records: NDArray[Any],
    buffer: TrajectoryBuffer,
    weights: NDArray[np.float64],
) -> None:
    for i in np.flatnonzero(records["route"] >= 0):
        record = records[i]
        sums = routes[at[i]].setdefault(buffer.routes[int(record["route"])], np.zeros(6))
        for place, field in ((0, "quality"), (2, "cost"), (4, "latency")):
            value = float(record[field])
            if not math.isnan(value):
                sums[place] += weights[i]
                sums[place + 1] += weights[i] * value


def _lengths(
    rows: NDArray[Any], rest: NDArray[Any], labels: NDArray[np.int64], cosines: F32, weights: NDArray[np.float64]
) -> None:
    n = len(labels) - len(rest)
    total = np.zeros(len(rows))
    np.add.at(total, labels[:n], weights * cosines[:n])
    np.add.at(total, labels[n:], rest["weight"] * rest["length"] * cosines[n:])
    rows["length"] = np.clip(total / np.maximum(rows["weight"], 1e-30), 0.0, 1.0)


def _name(
    rows: NDArray[Any],
    bank: PatternBank,
    copy: BankCopy,
    rest_weight: NDArray[np.float64],
    online: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> None:
    """Ids go where most of the old pattern went; what remains nameless is new, what lost its name is an alias."""
    overlap = np.zeros((len(copy.rows), len(rows)))
    old = np.array([copy.place[int(serial)] for serial in online], dtype=np.int64)
    np.add.at(overlap, (old, labels[: len(online)]), copy.unit)
    overlap[np.arange(len(copy.rows)), labels[len(online) :]] += rest_weight
    rows["serial"] = -1
    for flat in np.argsort(-overlap, axis=None, kind="stable"):
        i, c = divmod(int(flat), len(rows))
        if overlap[i, c] <= 0:
            break
        if rows["serial"][c] < 0 and not np.any(rows["serial"] == copy.rows["serial"][i]):
            for name in ("serial", "created", "accessed", "hits"):
                rows[name][c] = copy.rows[name][i]
    bank.learned = copy.learned
    for c in np.flatnonzero(rows["serial"] < 0).tolist():
        rows["serial"][c] = bank.learned
        rows["created"][c] = rows["accessed"][c] = copy.rows["created"].max(initial=0.0)
        bank.learned += 1
    kept = set(rows["serial"].tolist())
    for i, serial in enumerate(copy.rows["serial"].tolist()):
        if serial not in kept:
            bank.aliases[serial] = int(rows["serial"][int(overlap[i].argmax())])
