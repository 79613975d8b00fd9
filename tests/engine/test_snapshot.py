"""save / load: the whole learned state, the same bytes again, and clear refusals."""

import json
import os

import numpy as np
import pytest

from sona_stream.engine import SonaEngine
from sona_stream.errors import ConfigError, StateError


@pytest.fixture(scope="module")
def rich(tasks):
    """Everything a snapshot can hold: two tasks, patterns with routes and votes, layers, a part-filled buffer."""
    random = np.random.default_rng(1)
    made = tasks.engine(hidden_dim=48, embedding_dim=48, base_lora_lr=0.01, flush_threshold=3)
    centres = [tasks.direction(random, 48) for _ in range(2)]
    for k in (0, 1):
        for i in range(200):
            tid = made.begin_trajectory(tasks.member(centres[k], 0.2, random))
            made.add_trajectory_step(tid, tasks.direction(random, 48), [0.9, 0.1], random.random())
            made.add_trajectory_step(
                tid, tasks.direction(random, 48), [], 0, target=tasks.direction(random, 48), layer=1
            )
            made.set_trajectory_route(tid, f"model-{i % 2}")
            made.add_trajectory_context(tid, {"pattern_type": "CodeGen", "cost": 1.5, "latency_s": 0.2})
            made.end_trajectory(tid, random.random())
        if k == 0:
            made.force_learn()
    made.apply_base_lora(5, centres[0])
    assert made.get_stats()["ewc_tasks"] == 1
    return made, centres


def same(one, other, centres):
    X = np.random.default_rng(2).standard_normal((4, 48)).astype(np.float32)
    np.testing.assert_array_equal(one.apply_micro_lora(X), other.apply_micro_lora(X))
    for layer in (0, 1):
        np.testing.assert_array_equal(one.apply_base_lora(layer, X), other.apply_base_lora(layer, X))
    found, kept = one.find_patterns(centres[0], 9), other.find_patterns(centres[0], 9)
    assert [p.id for p in found] == [p.id for p in kept]
    for p, q in zip(found, kept, strict=True):
        np.testing.assert_array_equal(p.centroid, q.centroid)
        assert (p.cluster_size, p.avg_quality, p.pattern_type, p.routes) == (
            q.cluster_size,
            q.avg_quality,
            q.pattern_type,
            q.routes,
        )


def test_round_trip_through_bytes_and_file(tasks, rich, tmp_path):
    made, centres = rich
    data = made.to_bytes()
    twin = SonaEngine.from_bytes(data)
    assert twin.config == made.config
    assert twin.to_bytes() == data
    assert twin.get_stats() == {**made.get_stats(), "trajectories_open": 0}
    path = tmp_path / "engine.safetensors"
    made.save(path)
    same(made, SonaEngine.load(path), centres)
    assert os.listdir(tmp_path) == ["engine.safetensors"]


def test_a_restored_engine_goes_on_as_the_original_would(tasks, rich):
    data = rich[0].to_bytes()
    one, other = SonaEngine.from_bytes(data), SonaEngine.from_bytes(data)
    for engine in (one, other):
        assert engine.force_learn() == "Forced learning: 200 trajectories -> 2 patterns, status: completed"
        random = np.random.default_rng(7)
        for _ in range(30):
            v = tasks.direction(random, 48)
            tasks.trajectory(engine, v, [(v, random.random())], random.random())
    same(one, other, rich[1])


def test_another_configuration_of_the_same_sizes(tasks, rich):
    changed = tasks.config(hidden_dim=48, pattern_clusters=1, trajectory_capacity=50, enable_simd=False)
    twin = SonaEngine.from_bytes(rich[0].to_bytes(), config=changed)
    stats = twin.get_stats()
    assert (stats["patterns_stored"], stats["trajectories_buffered"]) == (1, 50)
    assert twin.force_learn().startswith("Forced learning: 50 trajectories -> 1 patterns")
    for wrong in (
        {"hidden_dim": 47},
        {"hidden_dim": 48, "micro_lora_rank": 1},
        {"hidden_dim": 48, "embedding_dim": 9},
    ):
        with pytest.raises(ConfigError, match="but the snapshot was taken with"):
            SonaEngine.from_bytes(rich[0].to_bytes(), config=tasks.config(**wrong))


def test_damage_and_newer_formats_are_refused(rich):
    data = rich[0].to_bytes()
    for bad in (b"", b"x" * 100, data[:-10], data[: len(data) // 2]):
        with pytest.raises(StateError, match="snapshot"):
            SonaEngine.from_bytes(bad)
    newer = data.replace(b'\\"version\\": 1,', b'\\"version\\": 9,', 1)
    assert newer != data
    with pytest.raises(StateError, match="format 9"):
        SonaEngine.from_bytes(newer)
    from safetensors.numpy import save

    foreign = save(
        {"a": np.zeros(1)}, metadata={"sona_stream": json.dumps({"format": "x", "version": 1, "state": 0})}
    )
    with pytest.raises(StateError, match="not an engine snapshot"):
        SonaEngine.from_bytes(foreign)


def test_a_failed_save_keeps_the_old_file(rich, tmp_path, monkeypatch):
    path = tmp_path / "engine.safetensors"
    path.write_bytes(b"old")

    def broken(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("sona_stream.engine.snapshot.os.fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        rich[0].save(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["engine.safetensors"]


def test_an_empty_engine_round_trips(tasks):
    made = tasks.engine(hidden_dim=8)
    twin = SonaEngine.from_bytes(made.to_bytes())
    assert twin.to_bytes() == made.to_bytes()
    assert twin.find_patterns(np.ones(8), 3) == []
