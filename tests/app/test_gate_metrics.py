"""Gates and watches by tenant, as Prometheus reads them."""

from prometheus_client import CollectorRegistry, generate_latest

from sona_stream.app.gate_metrics import GateCollector


def scraped(gates):
    registry = CollectorRegistry(auto_describe=True)
    registry.register(GateCollector(lambda: gates))
    return generate_latest(registry).decode()


def test_what_gates_did_is_told_by_tenant():
    said = scraped(
        {
            "gated": {("a", "kl_to_base"): 2, ("a:12ab", "kl_to_base"): 1, ("a:12ab", "degenerate"): 4},
            "trial": {"a": 5, "b": 2, "b:77": 1},
            "constrained": {("a", "trial"): 1, ("b", "passed"): 1},
        }
    )
    assert 'sona_gated_versions_total{gate="kl_to_base",tenant="a"} 3.0' in said
    assert 'sona_gated_versions_total{gate="degenerate",tenant="a"} 4.0' in said
    assert 'sona_trial_answers{tenant="a"} 5.0' in said
    assert 'sona_trial_answers{tenant="b"} 3.0' in said
    assert 'sona_constrained_keys{state="passed",tenant="b"} 1.0' in said


def test_labels_are_bounded_and_no_learner_is_no_error():
    said = scraped({"gated": {(f"t{i}", "finite"): 1 for i in range(80)}})
    assert 'tenant="other"} 16.0' in said
    assert "sona_gated_versions_total{" not in scraped({})
