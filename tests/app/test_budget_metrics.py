"""What is held under each bound, as Prometheus and people read it."""

from types import SimpleNamespace

from prometheus_client import CollectorRegistry, generate_latest

from sona_stream.app.budget_metrics import BudgetCollector
from sona_stream.budgets import Budget


class Keeper:
    def __init__(self, *budgets):
        self.told = budgets

    def budgets(self):
        return self.told


def test_every_bound_has_its_bytes_limit_items_and_evictions():
    adapters = Budget("adapters", "litellm_params.adapter_mb", 3, 300, 1000, 2)
    lessons = Budget("lessons", "sona.learner.replay_mb", 1, 10, 20, 0)
    backends = {
        "m": [SimpleNamespace(host=Keeper(adapters)), SimpleNamespace(host=None), SimpleNamespace(host=object())]
    }
    collector = BudgetCollector(backends, lambda: {"learner": Keeper(lessons)})
    registry = CollectorRegistry(auto_describe=True)
    registry.register(collector)
    lines = generate_latest(registry).decode().splitlines()
    host = '{deployment="1",holder="host",model="m",what="adapters"}'
    own = '{deployment="",holder="learner",model="",what="lessons"}'
    for line in (
        f"sona_budget_bytes{host} 300.0",
        f"sona_budget_limit_bytes{host} 1000.0",
        f"sona_budget_items{host} 3.0",
        f"sona_budget_evictions_total{host} 2.0",
        f"sona_budget_bytes{own} 10.0",
    ):
        assert line in lines
    assert [row["holder"] for row in collector.view()] == ["learner", "host"]
    assert collector.view()[1]["setting"] == "litellm_params.adapter_mb"
