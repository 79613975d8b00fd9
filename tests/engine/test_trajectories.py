"""Recording: nothing lost, nothing leaked, nothing half done."""

import subprocess
import sys

import numpy as np
import pytest


def ones(n=16):
    return np.ones(n)


@pytest.fixture
def made(tasks):
    return tasks.engine(hidden_dim=16, trajectory_capacity=100)


def fill(tasks, engine, n, quality=0.8):
    random = np.random.default_rng(0)
    for _ in range(n):
        x = tasks.direction(random, engine.config.hidden_dim)
        tasks.trajectory(engine, x, [(x, 0.8)], quality)


def test_too_few_for_tick_stay_and_are_learned_later(tasks):
    made = tasks.engine(hidden_dim=16, background_interval_ms=1, min_trajectories=600)
    ran = 0
    for _ in range(500):
        fill(tasks, made, 1)
        ran += made.tick() is not None
    stats = made.get_stats()
    assert ran == 0
    assert stats["trajectories_buffered"] == 500
    assert (
        made.force_learn()
        == f"Forced learning: 500 trajectories -> {len_patterns(made)} patterns, status: completed"
    )
    assert made.get_stats()["trajectories_buffered"] == 0


def len_patterns(made):
    return made.get_stats()["patterns_stored"]


def test_tick_runs_when_due_and_every_trajectory_is_used(tasks):
    made = tasks.engine(hidden_dim=16, background_interval_ms=1, min_trajectories=10)
    used = 0
    for _ in range(500):
        fill(tasks, made, 1)
        text = made.tick()
        used += int(text.split()[2]) if text else 0
    stats = made.get_stats()
    assert used > 0
    assert used + stats["trajectories_buffered"] == stats["trajectories_recorded"] == 500
    assert stats["trajectories_dropped"] == 0
    sizes = [pattern.cluster_size for pattern in made.find_patterns(ones(), 1000)]
    assert sum(sizes) == 500


def test_tick_is_not_due_before_its_interval(tasks, made):
    fill(tasks, made, 90)
    assert made.tick() is None
    assert made.get_stats()["trajectories_buffered"] == 90


def test_ninety_nine_are_enough_for_force_learn(tasks, made):
    fill(tasks, made, 99)
    assert made.get_stats()["force_learn_due"]
    text = made.force_learn()
    assert text.startswith("Forced learning: 99 trajectories -> ")
    assert text.endswith("patterns, status: completed")
    assert "0 trajectories" in made.force_learn()


@pytest.mark.parametrize(("policy", "kept"), [("oldest", range(50, 150)), ("newest", range(100))])
def test_a_full_buffer_drops_by_policy_and_counts(tasks, policy, kept):
    made = tasks.engine(hidden_dim=16, trajectory_capacity=100, drop_policy=policy)
    for i in range(150):
        tasks.trajectory(made, ones(), [(ones(), 0.5)], i / 150)
    stats = made.get_stats()
    assert (stats["trajectories_buffered"], stats["trajectories_dropped"]) == (100, 50)
    assert stats["buffer_success_rate"] == pytest.approx(100 / 150)
    buffer = made._recorder.buffer
    records = buffer.trajectories.slice(buffer.trajectories.first, buffer.trajectories.end)
    np.testing.assert_allclose(records["quality"], [i / 150 for i in kept], rtol=1e-6)
    assert (len(buffer.queries), len(buffer.vectors), len(buffer.steps)) == (100, 100, 100)


def test_ids_of_another_engine_or_used_ones_are_unknown(tasks, made):
    other = tasks.engine(hidden_dim=16)
    tid = made.begin_trajectory(ones())
    calls = [
        lambda e, t: e.add_trajectory_step(t, ones(), [], 0.5),
        lambda e, t: e.set_trajectory_route(t, "m"),
        lambda e, t: e.add_trajectory_context(t, {"cost": 1}),
        lambda e, t: e.end_trajectory(t, 0.5),
        lambda e, t: e.abort_trajectory(t),
    ]
    for call in calls:
        for engine, bad in ((other, tid), (made, 987654321), (made, None), (made, "x"), (made, [])):
            with pytest.raises(ValueError, match="is not open in this engine"):
                call(engine, bad)
    made.end_trajectory(tid, 0.5)
    with pytest.raises(ValueError, match="is not open"):
        made.end_trajectory(tid, 0.5)


BAD_STEPS = {
    "short activations": ({"activations": np.ones(15)}, "activations"),
    "nan activation": ({"activations": np.full(16, np.nan)}, "activations"),
    "infinite activation": ({"activations": np.full(16, np.inf)}, "activations"),
    "nan attention": ({"attention_weights": [np.nan]}, "attention_weights"),
    "text attention": ({"attention_weights": ["a", "b"]}, "attention_weights"),
    "nan reward": ({"reward": float("nan")}, "reward"),
    "text reward": ({"reward": "good"}, "reward"),
    "short target": ({"target": np.ones(3)}, "target"),
    "nan target": ({"target": np.full(16, np.nan)}, "target"),
    "nan grad": ({"grad": np.full(16, np.nan)}, "grad"),
    "both teachers": ({"target": np.ones(16), "grad": np.ones(16)}, "target and grad"),
    "layer": ({"layer": -1}, "layer"),
}


@pytest.mark.parametrize("name", BAD_STEPS)
def test_bad_steps_are_refused_and_change_nothing(tasks, made, name):
    changes, message = BAD_STEPS[name]
    fill(tasks, made, 5)
    tid = made.begin_trajectory(ones())
    before = made.to_bytes()
    arguments = {"activations": np.ones(16), "attention_weights": [], "reward": 0.5, **changes}
    with pytest.raises(ValueError, match=rf"^{message}"):
        made.add_trajectory_step(tid, **arguments)
    assert made.to_bytes() == before
    assert len(made._recorder._vectors) == 0
    made.end_trajectory(tid, 0.5)


@pytest.mark.parametrize("quality", [-0.01, 1.01, -5, 99, float("nan"), float("inf"), "good", None])
def test_quality_outside_its_range_is_refused_and_the_trajectory_stays_open(made, quality):
    tid = made.begin_trajectory(ones())
    with pytest.raises(ValueError, match=r"^quality must be"):
        made.end_trajectory(tid, quality)
    made.end_trajectory(tid, 1.0)
    assert made.get_stats()["trajectories_recorded"] == 1


@pytest.mark.parametrize(
    "query", [np.ones(15), np.ones((1, 16)), np.full(16, np.nan), np.full(16, np.inf), [], "x"]
)
def test_bad_queries_are_refused(made, query):
    with pytest.raises(ValueError, match=r"^query must"):
        made.begin_trajectory(query)
    with pytest.raises(ValueError, match=r"^query must"):
        made.find_patterns(query, 1)
    assert made.get_stats()["trajectories_open"] == 0
    assert len(made._recorder._queries) == 0


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"mood": 1}, "unknown context key 'mood'"),
        ({"pattern_type": "Poetry"}, "pattern_type must be one of"),
        ({"latency_s": -1}, "latency_s"),
        ({"cost": float("nan")}, "cost"),
        ({"pattern_type": "Creative", "pattern_type_weight": -1}, "pattern_type_weight"),
    ],
)
def test_bad_context_is_refused_whole(made, context, message):
    tid = made.begin_trajectory(ones())
    with pytest.raises(ValueError, match=message):
        made.add_trajectory_context(tid, {"cost": 2.0, **context})
    assert np.isnan(made._recorder.opened(tid).cost)
    assert made._recorder.opened(tid).vote == -1


@pytest.mark.parametrize("model", ["", None, 3])
def test_a_route_is_a_name(made, model):
    with pytest.raises(ValueError, match="model must be"):
        made.set_trajectory_route(made.begin_trajectory(ones()), model)


def test_abort_and_limits(made, monkeypatch):
    tid = made.begin_trajectory(ones())
    made.add_trajectory_step(tid, ones(), None, 0.5)
    made.abort_trajectory(tid)
    assert made.get_stats()["trajectories_open"] == made.get_stats()["trajectories_recorded"] == 0
    assert len(made._recorder._vectors) == len(made._recorder._queries) == 0
    monkeypatch.setattr("sona_stream.engine.recorder.MAX_STEPS", 2)
    tid = made.begin_trajectory(ones())
    for _ in range(2):
        made.add_trajectory_step(tid, ones(), [], 0.5)
    with pytest.raises(ValueError, match="already has 2 steps"):
        made.add_trajectory_step(tid, ones(), [], 0.5)


def test_forgotten_trajectories_expire(tasks, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("sona_stream.engine.recorder.time.monotonic", lambda: clock[0])
    made = tasks.engine(hidden_dim=16, trajectory_ttl_s=10)
    old = made.begin_trajectory(ones())
    clock[0] += 6
    young = made.begin_trajectory(ones())
    clock[0] += 6
    made.tick()
    stats = made.get_stats()
    assert (stats["trajectories_open"], stats["trajectories_expired"]) == (1, 1)
    with pytest.raises(ValueError, match="expired"):
        made.end_trajectory(old, 0.5)
    made.end_trajectory(young, 0.5)


def test_zero_queries_and_trajectories_without_steps_are_harmless(made):
    for query in (np.zeros(16), ones()):
        tid = made.begin_trajectory(query)
        made.end_trajectory(tid, 0.9)
    tid = made.begin_trajectory(np.zeros(16))
    made.add_trajectory_step(tid, np.zeros(16), [0, 0], 0.3)
    made.end_trajectory(tid, 0.1)
    made.force_learn()
    assert made.get_stats()["patterns_stored"] == 1
    assert made.find_patterns(np.zeros(16), 3) == []
    np.testing.assert_array_equal(made.apply_micro_lora(ones()), 1)


def test_disabled_records_and_learns_after(tasks, made):
    made.set_enabled(False)
    fill(tasks, made, 20)
    assert made.tick() is None
    assert made.force_learn().endswith("status: disabled")
    stats = made.get_stats()
    assert (stats["trajectories_buffered"], stats["patterns_stored"], stats["micro_updates"]) == (20, 0, 0)
    assert not stats["instant_enabled"]
    made.set_enabled(True)
    fill(tasks, made, 1)
    assert made.force_learn().startswith("Forced learning: 21 trajectories")


MEMORY = """
import gc, sys, time, dataclasses, numpy as np
from sona_stream.engine import SonaConfig, SonaEngine
def rss():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def one(engine, q, a):
    t = engine.begin_trajectory(q)
    engine.add_trajectory_step(t, a, attention, 0.8)
    engine.end_trajectory(t, 0.8)
random = np.random.default_rng(0)
attention = np.full(64, 1 / 64)
warm = SonaEngine.with_config(SonaConfig.edge(64))
for _ in range(40):
    one(warm, random.standard_normal(64), random.standard_normal(64))
warm.force_learn(); warm.to_bytes(); warm.find_patterns(np.ones(64), 1); warm.apply_base_lora(0, np.ones(64))
del warm
xs = [v / np.linalg.norm(v) for v in random.standard_normal((8, 3072)).astype(np.float32)]
start = rss()
edge = SonaEngine.with_config(SonaConfig.edge())
for i in range(200):
    one(edge, xs[i & 7], xs[(i + 3) & 7])
used = rss() - start
edge.force_learn()
print("edge", max(used, rss() - start))
leak = SonaEngine.with_config(dataclasses.replace(SonaConfig.edge(), trajectory_ttl_s=0.2, warn=False))
start = rss()
for i in range(5000):
    leak.begin_trajectory(xs[i & 7])
time.sleep(0.3)
leak.tick()
assert leak.get_stats()["trajectories_open"] == 0
print("abandoned", rss() - start)
big = SonaEngine.with_config(SonaConfig.research())
for i in range(100):
    one(big, xs[i & 7], xs[(i + 3) & 7])
start = rss()
for i in range(2000):
    one(big, xs[i & 7], xs[(i + 3) & 7])
print("trajectory", (rss() - start) // 2000)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory(tasks):
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = {name: int(value) for name, value in (line.split() for line in done.stdout.splitlines())}
    assert found["edge"] <= 5e6
    assert found["abandoned"] <= 5e6
    assert found["trajectory"] <= 7000
