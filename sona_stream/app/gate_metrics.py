"""What the learner's gates and watches know, by tenant, as Prometheus reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["GateCollector"]

_TENANTS = 64
"""Labels are bounded: further tenants count as ``other``."""


class GateCollector:
    """A collector for a registry. ``gates``: `Learner.gates`, or nothing while there is no learner."""

    def __init__(self, gates: Callable[[], Mapping[str, Mapping[Any, int]]]) -> None:
        self._gates = gates
        self._tenants: set[str] = set()

    def collect(self) -> Iterator[Metric]:
        """Everything, as of now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        found = self._gates()
        gated = CounterMetricFamily(
            "sona_gated_versions", "Adapter versions that a gate held or took back.", labels=["tenant", "gate"]
        )
        for (tenant, gate), count in sorted(self._pairs(found.get("gated", {})).items()):
            gated.add_metric([tenant, gate], count)
        trial = GaugeMetricFamily(
            "sona_trial_answers", "Answers of versions that are on trial, over all keys in use.", labels=["tenant"]
        )
        form = GaugeMetricFamily(
            "sona_constrained_keys",
            "Adapter keys in use by what is known of constrained answers.",
            labels=["tenant", "state"],
        )
        answers: Counter[str] = Counter()
        for whose, count in found.get("trial", {}).items():
            answers[self._tenant(whose)] += count
        for tenant, count in sorted(answers.items()):
            trial.add_metric([tenant], count)
        for (tenant, state), count in sorted(self._pairs(found.get("constrained", {})).items()):
            form.add_metric([tenant, state], count)
        yield from (gated, trial, form)

    def _pairs(self, counts: Mapping[tuple[str, str], int]) -> Counter[tuple[str, str]]:
        together: Counter[tuple[str, str]] = Counter()
        for (whose, what), count in counts.items():
            together[self._tenant(whose), what] += count
        return together

    def _tenant(self, whose: str) -> str:
        """Of all its end users together."""
        tenant = whose.partition(":")[0]
        if tenant not in self._tenants and len(self._tenants) >= _TENANTS:
            return "other"
        self._tenants.add(tenant)
        return tenant
