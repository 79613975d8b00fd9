"""Does it learn? The behavioural probes of the original engine, ported, with their targets."""

import numpy as np
import pytest

from sona_stream.engine.credit import attention_weight
from sona_stream.kernels import load


def deltas(engine, X):
    return engine.apply_micro_lora(X) - X


def test_four_clusters_with_their_own_targets(tasks):
    """Bandit-like regression: 4 noisy candidates a trajectory, reward = cosine to the cluster's target."""
    gains, improved = zip(*(tasks.four_clusters(seed, 2500)[1:3] for seed in (40, 41, 42)), strict=True)
    assert min(gains) >= 0.25
    assert min(improved) >= 0.95


def test_shuffled_rewards_teach_nothing(tasks):
    for steps in (4, 1):
        assert abs(tasks.four_clusters(43, 1500, steps=steps, shuffled=True)[1]) <= 0.07


def test_one_step_trajectories_learn_from_the_running_baseline(tasks):
    gains = [tasks.four_clusters(seed, 5000, steps=1)[1] for seed in (44,)]
    assert min(gains) >= 0.10


@pytest.mark.slow
def test_sixteen_seeds_of_the_full_task(tasks):
    gains = [tasks.four_clusters(200 + seed, 5000)[1] for seed in range(16)]
    assert min(gains) >= 0.25


def test_whole_populations_move_towards_the_target(tasks):
    """Inputs around one centre, one target: the sign must come from the reward, not from a random matrix."""
    towards = []
    for seed in range(20):
        random = np.random.default_rng(1000 + seed)
        centre, u = tasks.direction(random, 64), tasks.direction(random, 64)
        made = tasks.engine(hidden_dim=64)
        for _ in range(150):
            x = tasks.member(centre, 0.5, random)
            tasks.trajectory(made, x, [(u, 1.0), (tasks.direction(random, 64), 0.0)], 1.0)
        X = np.stack([tasks.member(centre, 0.5, random) for _ in range(50)]).astype(np.float32)
        towards.append(float((deltas(made, X) @ u > 0).mean()))
    assert np.mean([share > 0.5 for share in towards]) >= 0.95
    assert np.mean(towards) >= 0.95


def test_even_an_absurd_rate_stays_bounded_and_finite(tasks):
    random = np.random.default_rng(3)
    made = tasks.engine(hidden_dim=64, micro_lora_lr=1e6, max_delta_ratio=0.5)
    X = np.stack([tasks.direction(random, 64) for _ in range(40)]).astype(np.float32)
    for i in range(200):
        tasks.trajectory(made, X[i % 40], [(tasks.direction(random, 64), random.random())], random.random())
        last = X[i % 40]
        # The bound is kept on the int8 copies of the inputs.
        assert np.linalg.norm(made.apply_micro_lora(last) - last) <= 0.5 * 1.05
    assert np.isfinite(made.apply_micro_lora(X)).all()


def test_the_first_trajectory_already_moves_the_output_and_by_no_more_than_the_rate(tasks):
    random = np.random.default_rng(4)
    made = tasks.engine(micro_lora_lr=0.002)
    x = tasks.direction(random)
    for n in range(1, 30):
        before = made.apply_micro_lora(x)
        tasks.trajectory(made, x, [(tasks.direction(random), random.random()) for _ in range(3)], random.random())
        moved = np.linalg.norm(made.apply_micro_lora(x) - before)
        assert 0 < moved <= 0.002 * 1.05, n


@pytest.mark.parametrize("steps", [2, 3, 7])
def test_equal_rewards_teach_nothing(tasks, steps):
    """No advantage, no step: rounding noise must not be blown up to a signal."""
    random = np.random.default_rng(4)
    made = tasks.engine()
    for _ in range(50):
        tasks.trajectory(made, tasks.direction(random), [(tasks.direction(random), 0.7)] * steps, 0.5)
    X = np.stack([tasks.direction(random) for _ in range(8)]).astype(np.float32)
    assert np.linalg.norm(deltas(made, X), axis=1).max() <= 1e-4


def test_low_quality_pushes_away(tasks):
    random = np.random.default_rng(8)
    centre, u = tasks.direction(random), tasks.direction(random)

    def after(quality):
        made, stream = tasks.engine(quality_threshold=0.5), np.random.default_rng(9)
        for _ in range(100):
            tasks.trajectory(made, tasks.member(centre, 0.3, stream), [(u, quality)], quality)
        return made.apply_micro_lora(centre) - centre

    good, bad = after(0.95), after(0.05)
    assert tasks.cos(good, bad) < -0.5
    assert tasks.cos(good, u) > 0.5
    assert tasks.cos(bad, u) < -0.5


def test_low_quality_pushes_away_from_its_best_step_too(tasks):
    """The original's probe: random inputs, two steps with rewards 1 and 0, only the final quality differs."""
    cosines = []
    for seed in range(4):
        x = tasks.direction(np.random.default_rng(8 + 1000 * seed))

        def after(quality, seed=seed, x=x):
            made, random = tasks.engine(), np.random.default_rng(9 + 1000 * seed)
            for _ in range(100):
                steps = [(tasks.direction(random), 1.0), (tasks.direction(random), 0.0)]
                tasks.trajectory(made, tasks.direction(random), steps, quality)
            return made.apply_micro_lora(x) - x

        cosines.append(tasks.cos(after(0.95), after(0.05)))
    assert max(cosines) < 0


def test_both_ranks_are_used(tasks):
    """Two input clusters with two targets: the deltas span two directions, with rank 1 only one."""
    ratios = {}
    for rank in (1, 2):
        random = np.random.default_rng(11)
        centres = [tasks.direction(random) for _ in range(2)]
        targets = [tasks.direction(random) for _ in range(2)]
        made = tasks.engine(micro_lora_rank=rank)
        for i in range(1600):
            tasks.candidates(made, tasks.member(centres[i % 2], 0.3, random), targets[i % 2], random, 4)
        X = np.stack([tasks.member(centres[i % 2], 0.3, random) for i in range(40)]).astype(np.float32)
        spread = np.linalg.svd(deltas(made, X), compute_uv=False)
        ratios[rank] = spread[1] / spread[0]
    assert ratios[2] > 0.1
    assert ratios[1] < 1e-4


def test_a_target_is_reached_and_not_overshot(tasks):
    random = np.random.default_rng(12)
    a, target = tasks.direction(random), tasks.direction(random)
    made = tasks.engine(micro_lora_lr=0.01, max_delta_ratio=4.0)
    for _ in range(400):
        tid = made.begin_trajectory(tasks.direction(random))
        made.add_trajectory_step(tid, a, [], 0.0, target=target)
        made.end_trajectory(tid, 0.0)
    assert np.linalg.norm(made.apply_micro_lora(a) - target) <= 0.03


def test_a_gradient_is_descended(tasks):
    random = np.random.default_rng(13)
    a, g = tasks.direction(random), tasks.direction(random)
    made = tasks.engine()
    for _ in range(20):
        tid = made.begin_trajectory(a)
        made.add_trajectory_step(tid, a, [], 0.0, grad=g)
        made.end_trajectory(tid, 0.5)
    assert tasks.cos(made.apply_micro_lora(a) - a, g) < -0.5


def test_queries_of_another_size_learn_through_the_activations(tasks):
    random = np.random.default_rng(14)
    centre, u = tasks.direction(random), tasks.direction(random)
    made = tasks.engine(embedding_dim=32)
    for _ in range(300):
        x = tasks.member(centre, 0.3, random)
        steps = [(x + 0.3 * u, 1.0), (x - 0.3 * u, 0.0)]
        tasks.trajectory(made, tasks.direction(random, 32), steps, 0.8)
    assert tasks.cos(made.apply_micro_lora(centre) - centre, u) > 0.5


def test_attention_weighs_a_step(tasks):
    """Diffuse attention counts half as much as none or concentrated attention."""
    random = np.random.default_rng(15)
    x, a = tasks.direction(random), tasks.direction(random)

    def moved(attention):
        made = tasks.engine()
        tasks.trajectory(made, x, [(a, 0.55)], 0.5, attention)
        return np.linalg.norm(made.apply_micro_lora(x) - x)

    full, diffuse, sharp = moved([]), moved([0.25] * 4), moved([1.0, 0.0, 0.0, 0.0])
    assert full == pytest.approx(sharp)
    assert diffuse <= full


@pytest.mark.parametrize("compiled", [True, False])
def test_attention_weights_count_by_their_concentration(compiled):
    kernels = load(compiled=compiled)
    assert attention_weight([0.25] * 4, kernels) == pytest.approx(0.5)
    assert 0.5 < attention_weight([0.7, 0.1, 0.1, 0.1], kernels) < 1.0
    for alone in ([1, 0, 0], [], [3.0], np.zeros(4), np.array([[0, -2]], np.float16)):
        assert attention_weight(alone, kernels) == 1.0
    for bad in ([np.nan], [1.0, np.inf], [1e308, 1e308, 1e308]):
        with pytest.raises(ValueError, match="attention_weights"):
            attention_weight(bad, kernels)
