"""Tasks shared by the engine's tests: clusters on the sphere, bandit-like regression, whole trajectories."""

import types

import numpy as np
import pytest

from sona_stream.engine import SonaConfig, SonaEngine

DIM = 256


def unit(v):
    return v / np.linalg.norm(v)


def cos(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def direction(random, dim=DIM):
    return unit(random.standard_normal(dim))


def member(centre, sigma, random):
    """A member of a cluster: unit(centre + sigma * unit noise)."""
    return unit(centre + sigma * direction(random, len(centre)))


def config(**changes):
    defaults = {
        "hidden_dim": DIM,
        "micro_lora_rank": 2,
        "micro_lora_lr": 0.002,
        "quality_threshold": 0.2,
        "trajectory_capacity": 10_000,
    }
    return SonaConfig(**{**defaults, **changes}, warn=False)


def engine(**changes):
    return SonaEngine.with_config(config(**changes))


def trajectory(engine, query, steps, quality, attention=()):
    """One whole trajectory; steps = [(activations, reward), ...]"""
    tid = engine.begin_trajectory(query)
    for activations, reward in steps:
        engine.add_trajectory_step(tid, activations, attention, reward)
    engine.end_trajectory(tid, quality)


def candidates(engine, x, target, random, steps, rewards=None):
    """Steps around the present output, rewarded by their cosine to the target (or by `rewards`, a generator)."""
    y = engine.apply_micro_lora(x)
    out = []
    for _ in range(steps):
        candidate = y + 0.5 * direction(random, len(x))
        out.append((candidate, (1 + cos(candidate, target)) / 2 if rewards is None else rewards.random()))
    trajectory(engine, x, out, (1 + cos(y, target)) / 2)


def four_clusters(seed, n, steps=4, shuffled=False, **changes):
    """-> engine, gain in mean cosine to the target on 200 unseen inputs, fraction improved, and the scorer."""
    random = np.random.default_rng(seed)
    rewards = np.random.default_rng(seed + 999) if shuffled else None
    centres = [direction(random) for _ in range(4)]
    targets = [direction(random) for _ in range(4)]

    def sample():
        k = random.integers(4)
        return member(centres[k], 0.3, random), targets[k]

    made = engine(**changes)
    unseen = [sample() for _ in range(200)]

    def score(adapt):
        return np.array([cos(adapt(x), t) for x, t in unseen])

    before = score(lambda x: x)
    for _ in range(n):
        candidates(made, *sample(), random, steps, rewards)
    gains = score(made.apply_micro_lora) - before
    return made, float(gains.mean()), float((gains > 1e-9).mean()), lambda f: float((score(f) - before).mean())


@pytest.fixture(scope="session")
def tasks():
    names = (unit, cos, direction, member, config, engine, trajectory, candidates, four_clusters)
    return types.SimpleNamespace(DIM=DIM, **{f.__name__: f for f in names})
