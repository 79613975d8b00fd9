"""What a judgement is worth: its distance from what was to be expected.

The baseline runs across answers (never within one) and is shrunk towards the tenant's mean, since a pattern
sees few answers: (n mean_pattern + k mean_tenant) / (n + k).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

__all__ = ["Baseline", "Running", "advantages"]

_WINDOW = 128  # the policy improves under the statistics: older judgements fade
_PRIOR_MEAN, _PRIOR_SPREAD, _PRIOR_COUNT = 0.5, 0.3, 2.0  # before anything is known, the neutral rating
_LEAST_SPREAD = 0.05
_LARGEST = 3.0  # one outlier does not outweigh a day of ratings


@dataclasses.dataclass(slots=True)
class Running:
    """Count, mean and variance with a window: after `_WINDOW` values the newest weigh as in an average of that
    many.
    """

    n: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def push(self, value: float) -> None:
        """Welford's update with a bounded count."""
        self.n += 1
        share = 1.0 / min(self.n, _WINDOW)
        difference = value - self.mean
        self.mean += share * difference
        self.variance += share * (difference * (value - self.mean) - self.variance)


class Baseline:
    """Running expectation of one model and tenant, by pattern."""

    def __init__(self, shrinkage: float) -> None:
        self._shrinkage = shrinkage
        self.tenant = Running()
        self.patterns: dict[str, Running] = {}

    def advantage(self, quality: float, pattern: str) -> float:
        """(quality - baseline) / spread, before this quality is counted. In [-3, 3]."""
        return _bounded((quality - self._expected(pattern)) / self._spread())

    def push(self, quality: float, pattern: str) -> None:
        """Counts one judgement."""
        self.tenant.push(quality)
        self.patterns.setdefault(pattern, Running()).push(quality)

    def _expected(self, pattern: str) -> float:
        tenant = _shrunk(self.tenant.n, self.tenant.mean, _PRIOR_COUNT, _PRIOR_MEAN)
        own = self.patterns.get(pattern)
        return tenant if own is None else _shrunk(own.n, own.mean, self._shrinkage, tenant)

    def _spread(self) -> float:
        n, variance = min(self.tenant.n, _WINDOW), self.tenant.variance
        return max(_LEAST_SPREAD, math.sqrt(_shrunk(n, variance, _PRIOR_COUNT, _PRIOR_SPREAD**2)))

    def to_json(self) -> dict[str, object]:
        """For the store."""
        rows = {name: dataclasses.astuple(running) for name, running in self.patterns.items()}
        return {"tenant": dataclasses.astuple(self.tenant), "patterns": rows}

    @classmethod
    def from_json(cls, data: Mapping[str, object], shrinkage: float) -> Baseline:
        """Inverse of `to_json`."""
        baseline = cls(shrinkage)
        tenant, patterns = data.get("tenant"), data.get("patterns")
        if isinstance(tenant, list):
            baseline.tenant = Running(int(tenant[0]), float(tenant[1]), float(tenant[2]))
        if isinstance(patterns, dict):
            for name, row in patterns.items():
                baseline.patterns[name] = Running(int(row[0]), float(row[1]), float(row[2]))
        return baseline


def advantages(qualities: Sequence[float], patterns: Sequence[str], shrinkage: float) -> list[float]:
    """The same over a known set at once, as replay needs it: every judgement against all of them."""
    baseline = Baseline(shrinkage)
    count = len(qualities)
    if count:
        mean = sum(qualities) / count
        baseline.tenant = Running(count, mean, sum((q - mean) ** 2 for q in qualities) / count)
    for pattern in set(patterns):
        own = [q for q, p in zip(qualities, patterns, strict=True) if p == pattern]
        baseline.patterns[pattern] = Running(len(own), sum(own) / len(own), 0.0)
    return [baseline.advantage(q, p) for q, p in zip(qualities, patterns, strict=True)]


def _shrunk(n: float, mean: float, weight: float, towards: float) -> float:
    total = n + weight
    return towards if total == 0 else (n * mean + weight * towards) / total


def _bounded(value: float) -> float:
    return max(-_LARGEST, min(_LARGEST, value))
