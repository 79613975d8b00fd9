"""Every knob changes something that can be observed; and the guide's keys are all there."""

import numpy as np
import pytest


def observed(tasks, **changes):
    """Three short tasks in turn, a cycle after each; -> everything one can see."""
    random = np.random.default_rng(13)
    made = tasks.engine(
        **{"hidden_dim": 32, "pattern_clusters": 6, "base_lora_rank": 8, "base_lora_lr": 0.005, **changes}
    )
    e = made.config.embedding_dim
    centres = [tasks.direction(random, 32) for _ in range(6)]
    cycles = []
    for task in range(3):
        for i in range(120):
            k = 2 * task + i % 2
            x = tasks.member(centres[k], 0.4, random)
            steps = [(tasks.direction(random, 32), random.random()) for _ in range(2)]
            tasks.trajectory(made, x[:e], steps, 0.15 + 0.15 * k)
            made.tick()
        cycles.append(made.force_learn())
    probe = np.random.default_rng(14).standard_normal((6, 32)).astype(np.float32)
    patterns = [(p.cluster_size, p.avg_quality, p.similarity) for p in made.find_patterns(probe[0, :e], 100)]
    return {
        "micro": made.apply_micro_lora(probe).tobytes(),
        "base": made.apply_base_lora(0, probe).tobytes(),
        "patterns": f"{patterns} {made.get_stats()['patterns_learned']}",
        "cycles": str(cycles),
        "numba": made._kernels.__name__,
        "due": made.get_stats()["force_learn_due"],
        "dropped": made.get_stats()["trajectories_dropped"],
    }


@pytest.fixture(scope="module")
def normal(tasks):
    return observed(tasks)


@pytest.mark.parametrize(
    ("name", "value", "where"),
    [
        ("embedding_dim", 16, "patterns"),
        ("micro_lora_rank", 1, "micro"),
        ("base_lora_rank", 2, "base"),
        ("micro_lora_lr", 0.01, "micro"),
        ("base_lora_lr", 0.0005, "base"),
        ("ewc_lambda", 0, "micro"),
        ("ewc_lambda", 0, "base"),
        ("quality_threshold", 0.95, "micro"),
        ("quality_threshold", 0.0, "micro"),
        ("trajectory_capacity", 20, "dropped"),
        ("pattern_clusters", 3, "patterns"),
        ("background_interval_ms", 1, "cycles"),
        ("enable_simd", False, "numba"),
        ("flush_threshold", 8, "micro"),
        ("max_delta_ratio", 0.01, "micro"),
        ("pattern_similarity", 0.99, "patterns"),
        ("pattern_half_life", 20, "patterns"),
        ("seed", 1, "micro"),
    ],
)
def test_each_changes_an_observable(tasks, normal, name, value, where):
    assert observed(tasks, **{name: value})[where] != normal[where]


def test_the_same_configuration_gives_the_same_result(tasks, normal):
    assert observed(tasks) == normal


def test_min_trajectories_gates_tick(tasks):
    for least, runs in ((5, True), (6, False)):
        made = tasks.engine(hidden_dim=8, background_interval_ms=1, min_trajectories=least)
        for _ in range(5):
            tasks.trajectory(made, np.ones(8), [], 0.5)
        import time

        time.sleep(0.003)
        assert (made.tick() is not None) is runs


def test_flush_steps_with_what_waits(tasks):
    random = np.random.default_rng(1)
    made = tasks.engine(hidden_dim=8, flush_threshold=100)
    x = np.ones(8, np.float32)
    for _ in range(5):
        tasks.trajectory(made, x, [(tasks.direction(random, 8), random.random()) for _ in range(2)], 0.7)
    np.testing.assert_array_equal(made.apply_micro_lora(x), x)
    made.flush()
    assert not np.array_equal(made.apply_micro_lora(x), x)


def test_statistics_have_the_guides_keys_and_are_plain(tasks):
    import json

    stats = tasks.engine(hidden_dim=8).get_stats()
    guide = {
        "trajectories_recorded",
        "trajectories_buffered",
        "trajectories_dropped",
        "buffer_success_rate",
        "patterns_stored",
        "patterns_learned",
        "ewc_tasks",
        "instant_enabled",
        "background_enabled",
    }
    assert guide <= set(stats)
    assert json.loads(json.dumps(stats)) == stats
