"""What the learner's gates and watches know, by tenant, as Prometheus reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["GateCollector"]

_TENANTS = 64
"""Labels are bounded: further tenants count as ``other``."""


class GateCollector:
    """A collector for a registry. ``stats``: `Learner.stats`, or nothing while there is no learner."""

    def __init__(self, stats: Callable[[], Mapping[str, Any]]) -> None:
        self._stats = stats
        self._tenants: set[str] = set()

    def describe(self) -> Iterable[Metric]:
        """Nothing is asked of the learner before the first scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Everything, as of now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        stats = self._stats()
        gated = CounterMetricFamily(
            "sona_gated_versions", "Adapter versions that a gate held or took back.", labels=["tenant", "gate"]
        )
        for (tenant, gate), count in sorted(self._gated(stats).items()):
            gated.add_metric([tenant, gate], count)
        trial = GaugeMetricFamily(
            "sona_trial_answers", "Answers of versions that are on trial, over all keys.", labels=["tenant"]
        )
        form = GaugeMetricFamily(
            "sona_constrained_keys",
            "Adapter keys by what is known of constrained answers.",
            labels=["tenant", "state"],
        )
        answers, states = self._watched(stats)
        for tenant, count in sorted(answers.items()):
            trial.add_metric([tenant], count)
        for (tenant, state), count in sorted(states.items()):
            form.add_metric([tenant, state], count)
        yield from (gated, trial, form)

    def _gated(self, stats: Mapping[str, Any]) -> Counter[tuple[str, str]]:
        counts: Counter[tuple[str, str]] = Counter()
        for root, gates in stats.get("gates", {}).items():
            for gate, count in gates.items():
                if gate != "last":
                    counts[self._tenant(root), gate] += count
        return counts

    def _watched(self, stats: Mapping[str, Any]) -> tuple[Counter[str], Counter[tuple[str, str]]]:
        answers: Counter[str] = Counter()
        states: Counter[tuple[str, str]] = Counter()
        for key, view in stats.get("watched", {}).items():
            tenant = self._tenant(key)
            answers[tenant] += view.get("answers", 0)
            if "constrained" in view:
                states[tenant, view["constrained"]["state"]] += 1
        return answers, states

    def _tenant(self, key: str) -> str:
        """Of all its end users together."""
        tenant = key.rsplit("/", 2)[1].partition(":")[0]
        if tenant not in self._tenants and len(self._tenants) >= _TENANTS:
            return "other"
        self._tenants.add(tenant)
        return tenant
