"""The pattern bank: purity, growth, types, routes, what find_patterns says."""

import dataclasses

import numpy as np
import pytest

from sona_stream.events import PATTERN_TYPES


def purity(tasks, k, sigma=0.5, outliers=0, n=400, unrelated=False, seed=20):
    """-> purity on fresh queries after force_learn, engine (the original's probe)."""
    random = np.random.default_rng(seed)
    made = tasks.engine(pattern_clusters=k)
    centres = [tasks.direction(random) for _ in range(4)]
    members = [tasks.member(centres[i % 4], sigma, random) for i in range(n)]
    strangers = [tasks.direction(random) for _ in range(outliers)]
    for v in [*strangers, *members]:
        tasks.trajectory(made, v, [(3 * tasks.direction(random) if unrelated else v, 0.8)], 0.8)
    made.force_learn()
    seen = {}
    for i in range(400):
        found = made.find_patterns(tasks.member(centres[i % 4], sigma, random), 1)[0]
        seen.setdefault(found.id, [0] * 4)[i % 4] += 1
    return sum(max(hits) for hits in seen.values()) / 400, made


@pytest.mark.parametrize(
    ("kwargs", "least"),
    [
        ({"k": 4, "sigma": 0.3}, 0.99),
        ({"k": 4, "sigma": 2}, 0.99),
        ({"k": 25}, 0.99),
        ({"k": 100, "n": 200}, 0.99),
        ({"k": 4, "outliers": 8}, 0.99),
        ({"k": 8, "outliers": 8}, 0.99),
        ({"k": 4, "unrelated": True}, 0.99),
    ],
)
def test_purity(tasks, kwargs, least):
    found, made = purity(tasks, **kwargs)
    assert found >= least
    stored = made.find_patterns(np.ones(tasks.DIM), 1000)
    assert len(stored) <= kwargs["k"]
    assert sum(pattern.cluster_size for pattern in stored) == kwargs.get("n", 400) + kwargs.get("outliers", 0)


@pytest.mark.parametrize(("k", "least"), [(12, 0.91), (25, 0.91)])
def test_purity_on_hard_data(tasks, k, least):
    """12 clusters whose centres share a direction (cosine ~0.8), sizes 1 : 1/12, noise 0.8, d = 64."""
    scores = []
    for seed in (60, 61, 62):
        random = np.random.default_rng(seed)
        common = tasks.direction(random, 64)
        centres = [tasks.unit(common + 0.5 * tasks.direction(random, 64)) for _ in range(12)]
        shares = 1 / (1 + np.arange(12))
        labels = random.choice(12, 800, p=shares / shares.sum())
        made = tasks.engine(hidden_dim=64, pattern_clusters=k)
        for label in labels[:400]:
            v = tasks.member(centres[label], 0.8, random)
            tasks.trajectory(made, v, [(v, 0.8)], 0.8)
        made.force_learn()
        seen = {}
        for label in labels[400:]:
            found = made.find_patterns(tasks.member(centres[label], 0.8, random), 1)[0]
            seen.setdefault(found.id, [0] * 12)[label] += 1
        scores.append(sum(max(hits) for hits in seen.values()) / 400)
    assert np.median(scores) >= least


@pytest.mark.parametrize("k", [4, 50])
def test_thirty_cycles_do_not_grow_the_bank(tasks, k):
    random = np.random.default_rng(30)
    made = tasks.engine(pattern_clusters=k, trajectory_capacity=200)
    centres = [tasks.direction(random) for _ in range(4)]
    ids = None
    for _ in range(30):
        for i in range(60):
            v = tasks.member(centres[i % 4], 0.3, random)
            tasks.trajectory(made, v, [(v, 0.8)], 0.8)
        made.force_learn()
        found = [made.find_patterns(centre, 1)[0].id for centre in centres]
        assert ids in (None, found), "a pattern keeps its id through cycles"
        ids = found
    stats = made.get_stats()
    assert stats["patterns_stored"] <= 6
    top = made.find_patterns(centres[0], 3)
    assert max(tasks.cos(top[0].centroid, other.centroid) for other in top[1:]) < 0.95
    assert [pattern.cluster_size for pattern in top] == [450, 450, 450]


def test_find_says_how_similar_and_counts_its_answers(tasks):
    _, made = purity(tasks, 4)
    query = made.find_patterns(np.ones(tasks.DIM), 4)[2].centroid * 3
    found = made.find_patterns(query, 4)
    similarities = [pattern.similarity for pattern in found]
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[0] == pytest.approx(1.0, abs=1e-5)
    for pattern in found:
        assert pattern.similarity == pytest.approx(tasks.cos(pattern.centroid, query), abs=1e-5)
        assert np.linalg.norm(pattern.centroid) == pytest.approx(1, abs=1e-5)
        assert pattern.avg_quality == pytest.approx(0.8)
        assert pattern.created_at <= pattern.last_accessed
        assert not hasattr(pattern, "__dict__")
    again = made.find_patterns(query, 1)[0]
    assert again.access_count == found[0].access_count + 1
    assert made.find_patterns(query, 4, min_similarity=0.9) != []
    assert len(made.find_patterns(query, 4, min_similarity=0.9)) == 1
    assert made.find_patterns(query, 0) == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        again.id = "x"
    again.centroid[:] = 0
    assert made.find_patterns(query, 1)[0].similarity == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("k", [-1, 1.5, True, None])
def test_k_is_a_whole_number(tasks, k):
    with pytest.raises(ValueError, match=r"^k must be"):
        tasks.engine().find_patterns(np.ones(tasks.DIM), k)


def test_routes_keep_quality_cost_and_latency_apart(tasks):
    random = np.random.default_rng(1)
    centre = tasks.direction(random)
    made = tasks.engine(pattern_half_life=1e6)
    plan = [("small", 0.4, 1.0, 0.1), ("large", 0.9, 8.0, 0.7), ("small", 0.6, 3.0, None)]
    for cycle in range(2):
        for model, quality, cost, latency in plan:
            tid = made.begin_trajectory(tasks.member(centre, 0.2, random))
            made.set_trajectory_route(tid, model)
            made.add_trajectory_context(tid, {"cost": cost} | ({} if latency is None else {"latency_s": latency}))
            made.end_trajectory(tid, quality)
        if cycle == 0:
            made.force_learn()
    routes = made.find_patterns(centre, 1)[0].routes
    small, large = routes["small"], routes["large"]
    assert (small.avg_quality, large.avg_quality) == (pytest.approx(0.5, abs=1e-4), pytest.approx(0.9, abs=1e-4))
    assert (small.avg_cost, large.avg_cost) == (pytest.approx(2.0, abs=1e-3), pytest.approx(8.0, abs=1e-3))
    assert (small.avg_latency_s, large.avg_latency_s) == (pytest.approx(0.1), pytest.approx(0.7))
    assert (small.count, large.count) == (pytest.approx(4, abs=1e-3), pytest.approx(2, abs=1e-3))


def test_types_are_learned_by_vote_and_general_abstains(tasks):
    """Six clusters with 70 % right labels among votes, and one without any: macro accuracy >= 0.85."""
    random = np.random.default_rng(2)
    made = tasks.engine()
    centres = [tasks.direction(random) for _ in range(7)]
    for i in range(420):
        tid = made.begin_trajectory(tasks.member(centres[i % 7], 0.6, random))
        if i % 7 != 6:
            right = random.random() < 0.7
            made.add_trajectory_context(
                tid, {"pattern_type": PATTERN_TYPES[i % 7 if right else random.integers(len(PATTERN_TYPES))]}
            )
        made.end_trajectory(tid, 0.7)
    for stage in range(2):
        truth = [*PATTERN_TYPES, "General"]
        found = [
            [
                made.find_patterns(tasks.member(centre, 0.6, random), 1)[0].pattern_type == truth[c]
                for _ in range(30)
            ]
            for c, centre in enumerate(centres)
        ]
        assert np.mean([np.mean(right) for right in found]) >= 0.85, stage
        made.force_learn()


def test_labels_without_judgement_and_weights(tasks):
    random = np.random.default_rng(3)
    centre = tasks.direction(random)
    made = tasks.engine()
    first = made.label_query(centre, "Creative")
    assert made.find_patterns(centre, 1)[0].pattern_type == "Creative"
    assert made.find_patterns(centre, 1)[0].avg_quality == 0.0
    assert made.label_query(tasks.member(centre, 0.1, random), "CodeGen", weight=3.0) == first
    assert made.find_patterns(centre, 1)[0].pattern_type == "CodeGen"
    made.label_query(centre, "General", weight=9.0)
    assert made.find_patterns(centre, 1)[0].pattern_type == "General"
    assert made.label_query(np.zeros(tasks.DIM), "Creative") is None
    with pytest.raises(ValueError, match="pattern_type"):
        made.label_query(centre, "Poetry")


def test_counts_decay_so_that_drift_is_forgotten(tasks):
    random = np.random.default_rng(4)
    centre = tasks.direction(random)
    made = tasks.engine(pattern_half_life=20)
    for i in range(200):
        v = tasks.member(centre, 0.2, random)
        tasks.trajectory(made, v, [], 0.1 if i < 100 else 0.9)
    pattern = made.find_patterns(centre, 1)[0]
    assert pattern.avg_quality > 0.85
    assert pattern.total_weight == pytest.approx(1 / (1 - 2 ** (-1 / 20)), rel=0.01)
    assert pattern.cluster_size == 200


def test_near_copies_merge_and_keep_their_sums(tasks):
    """Two patterns opened apart grow together when the queries between them arrive."""
    random = np.random.default_rng(5)
    a, noise = tasks.direction(random), tasks.direction(random)
    left, right = tasks.unit(a + 0.7 * noise), tasks.unit(a - 0.7 * noise)
    made = tasks.engine()
    for v in (left, right):
        tasks.trajectory(made, v, [], 0.5)
    assert made.get_stats()["patterns_stored"] == 2
    told = 2
    for side, times in ((0.5, 10), (0.3, 20), (0.12, 300)):
        for sign in (1, -1) * times:
            tasks.trajectory(made, tasks.unit(a + sign * side * noise), [], 1.0)
            told += 1
    stats = made.get_stats()
    assert (stats["patterns_stored"], stats["patterns_learned"]) == (1, 2)
    pattern = made.find_patterns(a, 1)[0]
    assert pattern.cluster_size == told
    assert pattern.avg_quality == pytest.approx((told - 1) / told, abs=1e-3)


def test_two_hundred_patterns_answer_the_right_one(tasks):
    random = np.random.default_rng(6)
    made = tasks.engine(pattern_clusters=200)
    centres = [tasks.direction(random) for _ in range(200)]
    for centre in centres * 2:
        tasks.trajectory(made, tasks.member(centre, 0.2, random), [], 0.5)
    made.force_learn()
    assert made.get_stats()["patterns_stored"] == 200
    assert len({made.find_patterns(tasks.member(c, 0.2, random), 1)[0].id for c in centres}) == 200


def test_a_large_bank_still_takes_everything_in(tasks):
    """Beyond the size where pairs are compared online: bounded, nothing lost."""
    random = np.random.default_rng(7)
    made = tasks.engine(hidden_dim=32, pattern_clusters=300, pattern_similarity=0.99)
    for _ in range(500):
        tasks.trajectory(made, tasks.direction(random, 32), [], 0.5)
    made.force_learn()
    stored = made.find_patterns(np.ones(32), 1000)
    assert len(stored) <= 300
    assert sum(pattern.cluster_size for pattern in stored) == 500
