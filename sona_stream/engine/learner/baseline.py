"""What a judgement is worth: its distance from what was to be expected.

The baseline runs across answers (never within one) and is shrunk towards the tenant's mean, since a pattern
sees few answers: (n mean_pattern + k mean_tenant) / (n + k).

Where answers to the same prompt were judged, replay takes off what the prompt itself explains: the mean advantage
of its *other* answers (leave one out: Kool et al. 2019, https://openreview.net/forum?id=r1lgTGL5DE), shrunk by how
much prompts differ at all (James & Stein 1961; variances by the method of moments).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence

__all__ = ["Baseline", "Running", "advantages"]

_WINDOW = 128  # the policy improves under the statistics: older judgements fade
_PRIOR_MEAN, _PRIOR_SPREAD, _PRIOR_COUNT = 0.5, 0.3, 2.0  # before anything is known, the neutral rating
_LEAST_SPREAD = 0.05
_FEWEST_PROMPTS = 4  # below it nobody knows how much prompts differ
_LARGEST = 3.0  # one outlier does not outweigh a day of ratings


@dataclasses.dataclass(slots=True)
class Running:
    """Count, mean and variance with a window: after `_WINDOW` values the newest weigh as in an average of that
    many.
    """

    n: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def row(self) -> tuple[int, float, float]:
        """Its fields."""
        return self.n, self.mean, self.variance

    def push(self, value: float) -> None:
        """Welford's update with a bounded count."""
        self.n += 1
        share = 1.0 / min(self.n, _WINDOW)
        difference = value - self.mean
        self.mean += share * difference
        self.variance += share * (difference * (value - self.mean) - self.variance)

    def pull(self, value: float) -> None:
        """As if this one of them had never been pushed: exactly up to `_WINDOW` values, beyond as in an average."""
        share = 1.0 / min(self.n, _WINDOW)
        if share == 1.0:
            self.n, self.mean, self.variance = 0, 0.0, 0.0
            return
        before = (self.mean - share * value) / (1.0 - share)
        spread = share * (value - before) * (value - self.mean)
        self.n, self.mean = self.n - 1, min(max(before, 0.0), 1.0)
        self.variance = max((self.variance - spread) / (1.0 - share), 0.0)


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

    def pull(self, quality: float, pattern: str) -> None:
        """Takes one judgement out again."""
        for running in (self.tenant, self.patterns.get(pattern)):
            if running is not None and running.n:
                running.pull(quality)

    def _expected(self, pattern: str) -> float:
        tenant = _shrunk(self.tenant.n, self.tenant.mean, _PRIOR_COUNT, _PRIOR_MEAN)
        own = self.patterns.get(pattern)
        return tenant if own is None else _shrunk(own.n, own.mean, self._shrinkage, tenant)

    def _spread(self) -> float:
        n, variance = min(self.tenant.n, _WINDOW), self.tenant.variance
        return max(_LEAST_SPREAD, math.sqrt(_shrunk(n, variance, _PRIOR_COUNT, _PRIOR_SPREAD**2)))

    def to_json(self) -> dict[str, object]:
        """For the store."""
        rows = {name: running.row() for name, running in self.patterns.items()}
        return {"tenant": self.tenant.row(), "patterns": rows}

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


def advantages(
    qualities: Sequence[float], patterns: Sequence[str], shrinkage: float, prompts: Sequence[Hashable] = ()
) -> list[float]:
    """The same over a known set at once, as replay needs it: every judgement against all of them. ``prompts`` tells
    which answers had the same prompt; none given: nobody knows.
    """
    baseline = Baseline(shrinkage)
    count = len(qualities)
    if count:
        mean = sum(qualities) / count
        baseline.tenant = Running(count, mean, sum((q - mean) ** 2 for q in qualities) / count)
    for pattern in set(patterns):
        own = [q for q, p in zip(qualities, patterns, strict=True) if p == pattern]
        baseline.patterns[pattern] = Running(len(own), sum(own) / len(own), 0.0)
    values = [baseline.advantage(q, p) for q, p in zip(qualities, patterns, strict=True)]
    return _less_prompts(values, prompts) if prompts else values


def _less_prompts(values: Sequence[float], prompts: Sequence[Hashable]) -> list[float]:
    """Without what the prompts explain, at the length that they had."""
    by_prompt: dict[Hashable, list[float]] = {}
    for value, prompt in zip(values, prompts, strict=True):
        by_prompt.setdefault(prompt, []).append(value)
    within, between = _variances([own for own in by_prompt.values() if len(own) > 1])
    if between <= 0:
        return list(values)
    left = []
    for value, prompt in zip(values, prompts, strict=True):
        others = len(by_prompt[prompt]) - 1
        rest = sum(by_prompt[prompt]) - value
        left.append(value - rest * between / (others * between + within) if others else value)
    before, after = (math.sqrt(sum(one * one for one in part)) for part in (values, left))
    return [_bounded(one * before / after) if after else 0.0 for one in left]


def _variances(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Of the answers to one prompt, and of the prompts' own means (may come out negative: they do not differ)."""
    total = sum(map(len, groups))
    if len(groups) < _FEWEST_PROMPTS:
        return 0.0, 0.0
    means = [sum(group) / len(group) for group in groups]
    inside = sum((one - mean) ** 2 for group, mean in zip(groups, means, strict=True) for one in group)
    within = inside / (total - len(groups))
    middle = sum(map(sum, groups)) / total
    outside = sum(len(group) * (mean - middle) ** 2 for group, mean in zip(groups, means, strict=True))
    size = (total - sum(len(group) ** 2 for group in groups) / total) / (len(groups) - 1)
    return within, (outside / (len(groups) - 1) - within) / size


def _shrunk(n: float, mean: float, weight: float, towards: float) -> float:
    total = n + weight
    return towards if total == 0 else (n * mean + weight * towards) / total


def _bounded(value: float) -> float:
    return max(-_LARGEST, min(_LARGEST, value))
