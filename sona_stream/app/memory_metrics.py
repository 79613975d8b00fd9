"""What the memory of episodes counts, at `/metrics`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["MemoryCollector"]

_GAUGES = {
    "episodes": "Answers that are remembered.",
    "bytes": "Their bytes.",
    "index_bytes": "Bytes of the index in memory.",
}
_COUNTERS = {
    "searches": "Requests whose question was looked for.",
    "recalled": "Searches that found a candidate.",
    "used": "Answers that drew on an episode, by episode.",
    "evicted": "Episodes that made room for others.",
    "expired": "Episodes that were older than the time to live.",
    "renewed": "Episodes made anew for another model.",
    "questions_lost": "Requests whose correction will not be remembered after a restart.",
}


class MemoryCollector:
    """A collector for a registry. ``stats``: `Memories.stats`, or nothing where nothing is remembered."""

    def __init__(self, stats: Callable[[], Mapping[str, Any]]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Everything, as of now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        stats = self._stats()
        if not stats:
            return
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"sona_memory_{name}", text, value=stats.get(name, 0))
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"sona_memory_{name}", text, value=stats.get(name, 0))
        unfit = GaugeMetricFamily(
            "sona_memory_of_another_model",
            "Episodes that were made for another model than the one that answers now.",
            labels=["model", "state"],
        )
        for model, states in stats.get("of_another_model", {}).items():
            for state, count in states.items():
                unfit.add_metric([model, state], count)
        yield unfit
