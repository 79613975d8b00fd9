"""What is held under each bound on memory: at `/metrics`, and for `/v1/sona/stats`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..budgets import Budget, BudgetKeeper
from ..protocols import Backend

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["BudgetCollector"]

_LABELS = ("holder", "model", "deployment", "what")
_GAUGES: dict[str, tuple[str, Callable[[Budget], float]]] = {
    "sona_budget_bytes": ("Bytes held under a bound on memory.", lambda one: one.nbytes),
    "sona_budget_limit_bytes": ("The bound.", lambda one: one.limit),
    "sona_budget_items": ("Things held under it.", lambda one: one.items),
}

Held = tuple[tuple[str, str, str], Budget]


class BudgetCollector:
    """A collector for a registry. ``own``: holders that belong to no model (learner, memory), asked each time."""

    def __init__(
        self, backends: Mapping[str, Sequence[Backend]], own: Callable[[], Mapping[str, BudgetKeeper]]
    ) -> None:
        self._backends, self._own = backends, own

    def collect(self) -> Iterable[Metric]:
        """Everything, as of now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        held = self._held()
        for name, (text, value) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=_LABELS)
            for labels, one in held:
                gauge.add_metric((*labels, one.what), value(one))
            yield gauge
        gone = CounterMetricFamily("sona_budget_evictions", "What made room for others.", labels=_LABELS)
        for labels, one in held:
            gone.add_metric((*labels, one.what), one.evictions)
        yield gone

    def view(self) -> list[dict[str, Any]]:
        """As JSON."""
        return [
            {"holder": holder, "model": model, "deployment": place, **one.view()}
            for (holder, model, place), one in self._held()
        ]

    def _held(self) -> list[Held]:
        """(holder, model, place of the deployment), and one of its bounds."""
        held: list[Held] = []
        for holder, keeper in self._own().items():
            held += [((holder, "", ""), one) for one in keeper.budgets()]
        for model, group in self._backends.items():
            for place, backend in enumerate(group, 1):
                host: object = backend.host
                if isinstance(host, BudgetKeeper):
                    held += [(("host", model, str(place)), one) for one in host.budgets()]
        return held
