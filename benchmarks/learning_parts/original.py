"""The engine without a model against the package that the guide describes: three of its behavioural tests.

Both systems get the same tasks in the same run, each from its own random stream; the original's are in
``benchmarks/original/learn.js``.

* **direction** (percent of populations): inputs lie around one centre, and 300 trajectories show a step with
  reward 1 in a fixed direction u and one with reward 0 in a random direction. A population counts when more than
  half of 50 unseen inputs moved towards u. Dimension 64.
* **regression** (gain in mean cosine): inputs come from four clusters with a target each; a trajectory shows four
  noisy candidates around the present output, rewarded by their cosine to the target. Dimension 256, 5,000
  trajectories. Beside it: rewards drawn at random, and one candidate a trajectory.
* **ewc** (share): task A, then task B at overlapping inputs, learned in background cycles; how much of A is
  forgotten with `ewc_lambda` 2000, over how much without it. 1 means that the setting does nothing, which is what
  it is when all outputs are equal to the last bit; of a seed that forgets nothing without it there is no share. Who
  is held too fast learns no B: of what is learned of B without it, at least 80 % is to be learned with it, too, in
  the medians (``compared["relearned ..."]``). Dimension 256.

On the regression and on ewc the original runs at the rate of `RATES` at which its median gain on the regression is
largest, in the direction test at `DIRECTION_RATE`; ours at the guide's in all three.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from report import Report, Row

from sona_stream.engine import SonaConfig, SonaEngine

from .plan import Run

__all__ = ["add_rows", "direction", "ewc", "regression"]

F64 = NDArray[np.float64]
Result = Mapping[str, Any]

GUIDE_RATE = 0.002
RATES = (GUIDE_RATE, 5.0, 500.0)
"""of the original, on the regression and on ewc"""
DIRECTION_RATE = 1.0
"""of the original; only signs count there"""
LAMBDA = 2000
RELEARNED = 0.8


def add_rows(report: Report, run: Run) -> None:
    """`original.{direction,regression,ewc}.{ours,theirs}`."""
    seeds = range(2 if run.quick else 16)
    rate = _best_rate(report, run, seeds)
    _direction(report, run, seeds)
    _regression(report, run, seeds, rate)
    _ewc(report, run, seeds, rate)


def _counts(run: Run) -> dict[str, int]:
    return {"trajectories": 1500 if run.quick else 5000, "unseen": 200}


def _theirs(run: Run, op: str, seed: int, **options: Any) -> Result | None:
    """The original's answer; None without it."""
    original = run.original
    if original is None:
        return None
    name = "-".join(f"{value}" for value in options.values())
    answer: Result = run.kept(f"original.{op}.{name}.{seed}", lambda: original.ask(op, seed=seed, **options))
    return answer


def _ours(run: Run, task: Callable[..., Result], seed: int, **options: Any) -> Result:
    name = "-".join(f"{value}" for value in options.values())
    answer: Result = run.kept(f"ours.{task.__name__}.{name}.{seed}", lambda: task(seed, **options))
    return answer


def _best_rate(report: Report, run: Run, seeds: Sequence[int]) -> float:
    if run.original is None:
        return GUIDE_RATE
    gains = {rate: statistics.median(_gain(_their_regression(run, s, rate)) for s in seeds[:4]) for rate in RATES}
    report.note("the original's gain on the regression by its rate: " + _listed(gains))
    return max(gains, key=lambda rate: gains[rate])


def _listed(gains: Mapping[float, float]) -> str:
    return ", ".join(f"{rate:g}: {gain:.2g}" for rate, gain in gains.items())


def _their_regression(run: Run, seed: int, rate: float, *, steps: int = 4, shuffled: bool = False) -> Result:
    options = {"lr": rate, "dim": 256, **_counts(run), "steps": steps, "shuffled": shuffled}
    return _theirs(run, "regression", 200 + seed, **options) or {}


def _gain(result: Result) -> float:
    return float(result["after"] - result["before"])


def _direction(report: Report, run: Run, seeds: Sequence[int]) -> None:
    populations = range(60 if len(seeds) >= 16 else 6)
    options = {"dim": 64, "trajectories": 300, "inputs": 50}
    ours = [_ours(run, direction, 1000 + seed, **options)["towards"] for seed in populations]
    theirs = [_theirs(run, "direction", 1000 + seed, lr=DIRECTION_RATE, **options) for seed in populations]
    others = [found["towards"] for found in theirs if found is not None]
    for who, shares, goal, rate in (("ours", ours, 95.0, GUIDE_RATE), ("theirs", others, None, DIRECTION_RATE)):
        value = 100 * float(np.mean([share > 0.5 for share in shares])) if shares else None
        inputs = {"inputs moved towards, %": 100 * float(np.mean(shares)) if shares else None, "rate": rate}
        report.add(
            Row(f"original.direction.{who}", value, "%", n=len(shares), compared=inputs, goal=goal, direction=">=")
        )


def _regression(report: Report, run: Run, seeds: Sequence[int], rate: float) -> None:
    def gains(**options: Any) -> list[float]:
        return [_gain(_ours(run, regression, 200 + seed, **_counts(run), **options)) for seed in seeds]

    ours = gains(steps=4, shuffled=False)
    controls = {
        "shuffled rewards": statistics.median(gains(steps=4, shuffled=True)),
        "one step": statistics.median(gains(steps=1, shuffled=False)),
        "one step, shuffled": statistics.median(gains(steps=1, shuffled=True)),
    }
    report.measured("original.regression.ours", ours, "cosine", goal=0.25, direction=">=", compared=controls)
    if run.original is None:
        report.add(Row("original.regression.theirs", None, "cosine"))
        return
    best = [_gain(_their_regression(run, seed, rate)) for seed in seeds]
    guide = statistics.median(_gain(_their_regression(run, seed, GUIDE_RATE)) for seed in seeds)
    report.measured(
        "original.regression.theirs", best, "cosine", compared={"rate": rate, f"at the guide's {GUIDE_RATE}": guide}
    )


def _ewc(report: Report, run: Run, seeds: Sequence[int], rate: float) -> None:
    counts = {"cycles": 60, "each": 20, "unseen": 60}

    def ours(seed: int, strength: int) -> Result:
        return _ours(run, ewc, seed, strength=strength, **counts)

    def theirs(seed: int, strength: int) -> Result | None:
        return _theirs(run, "ewc", seed, lr=rate, dim=256, **counts, **{"lambda": strength})

    for who, ask, goal in (("ours", ours, 0.5), ("theirs", theirs, None)):
        pairs = [(ask(1 + seed, 0), ask(1 + seed, LAMBDA)) for seed in seeds]
        known = [(without, held) for without, held in pairs if without is not None and held is not None]
        report.add(_held(f"original.ewc.{who}", known, goal))


def _held(id: str, pairs: Sequence[tuple[Result, Result]], goal: float | None) -> Row:
    """From (without, with) of each seed."""
    if not pairs:
        return Row(id, None, "share", n=0, goal=goal)

    def middle(at: int, what: str) -> float:
        return float(statistics.median(pair[at][what] for pair in pairs))

    relearned = middle(0, "relearned"), middle(1, "relearned")
    shares = [share for pair in pairs if (share := _forgotten(*pair)) is not None]
    compared = {
        "forgotten without": middle(0, "forgotten"),
        "learned": middle(0, "learned"),
        "relearned without": relearned[0],
        "relearned with": relearned[1],
        "relearned with, at least": None if goal is None else RELEARNED * relearned[0],
        "tasks counted": middle(1, "tasks"),
        "seeds with equal outputs": sum(without["outputs"] == held["outputs"] for without, held in pairs),
        "seeds without a share": len(pairs) - len(shares),
    }
    also = None if goal is None else relearned[0] > 0 and RELEARNED * relearned[0] <= relearned[1]
    value, spread = (statistics.median(shares), (min(shares), max(shares))) if shares else (None, None)
    return Row(id, value, "share", spread, len(shares), compared, goal, also=also)


def _forgotten(without: Result, held: Result) -> float | None:
    if without["outputs"] == held["outputs"]:
        return 1.0
    return float(held["forgotten"] / without["forgotten"]) if without["forgotten"] > 0 else None


def direction(seed: int, *, dim: int, trajectories: int, inputs: int) -> Result:
    """One population -> ``towards``, the share of unseen inputs that moved towards the target."""
    random = np.random.default_rng(seed)
    centre, target = _direction_of(random, dim), _direction_of(random, dim)
    engine = _engine(dim)
    for _ in range(trajectories):
        steps = [(target, 1.0), (_direction_of(random, dim), 0.0)]
        _trajectory(engine, _near(centre, 0.5, random), steps, 1.0)
    engine.flush()
    X = np.stack([_near(centre, 0.5, random) for _ in range(inputs)]).astype(np.float32)
    return {"towards": float(((engine.apply_micro_lora(X) - X) @ target > 0).mean())}


def regression(seed: int, *, trajectories: int, unseen: int, steps: int, shuffled: bool) -> Result:
    """-> mean cosine to the target on unseen inputs ``before`` and ``after``."""
    random = np.random.default_rng(seed)
    noise = np.random.default_rng(seed + 999) if shuffled else None
    centres, targets = ([_direction_of(random, 256) for _ in range(4)] for _ in range(2))

    def draw() -> tuple[F64, F64]:
        k = random.integers(4)
        return _near(centres[k], 0.3, random), targets[k]

    engine, test = _engine(256), [draw() for _ in range(unseen)]

    def score() -> float:
        return float(np.mean([_cosine(engine.apply_micro_lora(x), target) for x, target in test]))

    before = score()
    for _ in range(trajectories):
        _candidates(engine, *draw(), steps, random, noise)
    engine.flush()
    return {"before": before, "after": score()}


def ewc(seed: int, *, strength: int, cycles: int, each: int, unseen: int) -> Result:
    """-> what of task A was ``learned`` and then ``forgotten``, of B ``relearned``; ``tasks``; ``outputs``."""
    random = np.random.default_rng(seed)
    common = _direction_of(random, 256)
    centres = [_unit(common + _direction_of(random, 256)) for _ in range(2)]
    targets = [_direction_of(random, 256) for _ in range(2)]
    tests = [[_near(centre, 0.3, random) for _ in range(unseen)] for centre in centres]
    engine = _engine(256, ewc_lambda=strength)

    def score(k: int) -> float:
        return float(np.mean([_cosine(engine.apply_micro_lora(x), targets[k]) for x in tests[k]]))

    def learn(k: int) -> None:
        for _ in range(cycles):
            for _ in range(each):
                _candidates(engine, _near(centres[k], 0.3, random), targets[k], 4, random, None)
            engine.force_learn()
        engine.flush()

    start = [score(0), score(1)]
    learn(0)
    learned = score(0)
    learn(1)
    outputs = engine.apply_micro_lora(np.stack([x for test in tests for x in test]).astype(np.float32))
    return {
        "learned": learned - start[0],
        "forgotten": learned - score(0),
        "relearned": score(1) - start[1],
        "tasks": int(engine.get_stats()["ewc_tasks"]),
        "outputs": hashlib.sha256(outputs.tobytes()).hexdigest(),
    }


def _engine(dim: int, **changes: Any) -> SonaEngine:
    chosen = {
        "micro_lora_rank": 2,
        "micro_lora_lr": GUIDE_RATE,
        "quality_threshold": 0.2,
        "trajectory_capacity": 10_000,
    }
    return SonaEngine.with_config(SonaConfig(hidden_dim=dim, **{**chosen, **changes}, warn=False))


def _candidates(
    engine: SonaEngine,
    x: F64,
    target: F64,
    steps: int,
    random: np.random.Generator,
    noise: np.random.Generator | None,
) -> None:
    y = engine.apply_micro_lora(x)
    made = []
    for _ in range(steps):
        candidate = y + 0.5 * _direction_of(random, len(x))
        made.append((candidate, (1 + _cosine(candidate, target)) / 2 if noise is None else noise.random()))
    _trajectory(engine, x, made, (1 + _cosine(y, target)) / 2)


def _trajectory(engine: SonaEngine, query: F64, steps: Sequence[tuple[F64, float]], quality: float) -> None:
    trajectory = engine.begin_trajectory(query)
    for activation, reward in steps:
        engine.add_trajectory_step(trajectory, activation, [], reward)
    engine.end_trajectory(trajectory, quality)


def _unit(v: F64) -> F64:
    return v / np.linalg.norm(v)


def _direction_of(random: np.random.Generator, dim: int) -> F64:
    return _unit(random.standard_normal(dim))


def _near(centre: F64, spread: float, random: np.random.Generator) -> F64:
    return _unit(centre + spread * _direction_of(random, len(centre)))


def _cosine(a: F64, b: F64) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
