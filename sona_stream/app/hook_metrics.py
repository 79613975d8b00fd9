"""What the hooks inside model servers count, at `/metrics`: read when their deployments were last probed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .watch import Watch

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["HookCollector"]

_LABELS = ("model", "deployment")
_COUNTERS = {
    "steps": "Steps of the model that the hook has seen.",
    "adapted_rows": "Rows that an adapter changed.",
    "mixed_rows": "Rows that episodes changed.",
    "capped_rows": "Rows whose change was cut to the norm cap.",
    "mismatch": "Steps passed through because rows and requests did not add up.",
    "missing_rows": "Rows served without the adapter that their request names.",
    "bad_bindings": "Requests whose arguments for the hook could not be used.",
    "captured_tokens": "Tokens whose hidden states were captured.",
    "lost_rows": "Captured rows that were overwritten before they were fetched.",
    "evictions": "Adapters that made room for others.",
    "episode_evictions": "Episodes that made room for others.",
    "puts": "Adapters put.",
    "drops": "Adapters dropped.",
    "refused": "Calls that were answered with an error.",
    "rewraps": "Times that the model was replaced or loaded again.",
    "errors": "Exceptions in the hook's own code.",
    "calls": "Calls of the plug-in's routes.",
    "refused_keys": "Calls with a wrong control key.",
    "stripped_requests": "Requests of which arguments for the hook were taken out.",
}
_GAUGES = {
    "adapters": "Adapters held now.",
    "adapter_bytes": "Their bytes.",
    "episodes": "Episodes held now.",
    "episode_bytes": "Their bytes.",
    "episode_held_bytes": "Bytes of episodes that answers under way hold beside them.",
    "captures": "Fetched captures held now.",
    "capture_bytes": "Their bytes.",
    "ring_bytes": "Bytes of the ring of captured rows.",
    "live_requests": "Bound requests being answered now.",
    "unserved": "Known answers that their adapter did not serve.",
}


class HookCollector:
    """Of `prometheus_client`. Labels: the model's name, and the deployment's place in the configuration from 1."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def collect(self) -> Iterable[Metric]:
        """Everything, as of the last probe."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        told = self._watch.hook_stats()
        reachable = GaugeMetricFamily(
            "sona_hook_reachable", "1 when the hook was there at the last probe.", None, _LABELS
        )
        off = GaugeMetricFamily(
            "sona_hook_disabled", "1 when the hook has switched itself off.", None, (*_LABELS, "reason")
        )
        for labels, stats in told:
            reachable.add_metric(labels, float(bool(stats)))
            if stats:
                reason = _reason(str(stats.get("disabled") or ""))
                off.add_metric((*labels, reason), float(bool(reason)))
        families: list[Metric] = [reachable, off]
        for kind, names in ((CounterMetricFamily, _COUNTERS), (GaugeMetricFamily, _GAUGES)):
            for name, help_text in names.items():
                family = kind(f"sona_hook_{name}", help_text, None, _LABELS)
                for labels, stats in told:
                    if name in stats:
                        family.add_metric(labels, float(stats[name]))
                families.append(family)
        return families


def _reason(disabled: str) -> str:
    """Where it failed and with what exception; the words, which may be anything, are in the log."""
    return ":".join(disabled.split(":")[:2])
