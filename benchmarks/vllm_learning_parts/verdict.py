"""The rows: what rose, whether chance explains it, and who was left alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from live_adaptation import SAMPLES, Answer, distinct2_ratio, mean_reward, relevance
from numpy.typing import NDArray
from report import Report, Row

from .kept import Seed
from .tenants import Greedy

__all__ = ["bootstrap", "rows"]

RESAMPLES = 20_000
LEAST = 1e-9
"""what "above zero" means to a row whose goal is ``>=``"""


def rows(report: Report, seeds: Sequence[Seed]) -> None:
    """Adds all of them."""
    before, after, control = (
        np.array([by_question(getattr(seed.outcome, name)) for seed in seeds])
        for name in ("before", "after", "control")
    )
    answers = {"answers a seed": before.shape[1] * SAMPLES}
    gain = {"gain_pct": 100 * (after.mean() / before.mean() - 1)}
    _means(report, "tenant_a.before", before, answers)
    _means(report, "tenant_a.after", after, {**answers, **gain})
    _means(report, "tenant_a.control", control, answers)
    _difference(report, "tenant_a.gain_low", after - before, goal=LEAST)
    _difference(report, "tenant_a.over_control_low", after - control, goal=LEAST)
    _difference(report, "tenant_a.control_shift_low", control - before)
    _per_seed(report, "tenant_a.distinct2_ratio", [distinct2_ratio(seed.outcome) for seed in seeds], goal=0.9)
    related = [relevance(seed.outcome.after) / relevance(seed.outcome.before) for seed in seeds]
    _per_seed(report, "tenant_a.relevance_ratio", related, goal=0.9)
    _identical(report, seeds)
    report.add(Row("tenant_a.feedbacks", max(seed.feedbacks for seed in seeds), "ratings", goal=200))
    report.measured("seconds_a_seed", [seed.seconds for seed in seeds], "s")


def by_question(answers: Sequence[Answer]) -> NDArray[np.float64]:
    """(questions,) mean reward of the samples of each."""
    return np.reshape([answer.reward for answer in answers], (-1, SAMPLES)).mean(axis=1)


def bootstrap(
    differences: NDArray[np.float64], *, resamples: int | None = None, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mean of paired ``differences`` (seeds, questions). Both are drawn anew each time: seeds
    share their questions, so answers are no independent sample.
    """
    rng = np.random.default_rng(seed)
    runs, asked = differences.shape
    means = np.empty(resamples or RESAMPLES)
    for i in range(len(means)):
        drawn = differences[rng.integers(runs, size=runs)]
        means[i] = drawn[:, rng.integers(asked, size=asked)].mean()
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _means(report: Report, id: str, rewards: NDArray[np.float64], compared: dict[str, float]) -> None:
    each = rewards.mean(axis=1)
    spread = (float(each.min()), float(each.max()))
    report.add(Row(id, float(each.mean()), "reward", spread, len(each), compared))


def _difference(report: Report, id: str, differences: NDArray[np.float64], *, goal: float | None = None) -> None:
    low, high = bootstrap(differences)
    compared = {"mean": float(differences.mean()), "resampled": "seeds and questions, paired, 95 %"}
    report.add(Row(id, low, "reward", (low, high), differences.size, compared, goal, ">="))


def _per_seed(report: Report, id: str, values: Sequence[float], *, goal: float) -> None:
    spread = (min(values), max(values))
    report.add(Row(id, float(np.mean(values)), "ratio", spread, len(values), {}, goal, ">="))


def _identical(report: Report, seeds: Sequence[Seed]) -> None:
    pairs = [pair for seed in seeds for pair in zip(*seed.looked, strict=True)]
    same = float(np.mean([one.text.encode() == other.text.encode() for one, other in pairs]))
    compared = {"tokens": sum(len(one.logprobs) for one, _ in pairs), "logprobs apart by": _apart(pairs)}
    report.add(Row("tenant_b_identical", same, "share", None, len(pairs), compared, 1.0, "=="))


def _apart(pairs: Sequence[tuple[Greedy, Greedy]]) -> float:
    """The most that the log-probability of one token moved, over answers of equal length."""
    apart = [
        abs(a - b)
        for one, other in pairs
        if len(one.logprobs) == len(other.logprobs)
        for a, b in zip(one.logprobs, other.logprobs, strict=True)
    ]
    return max(apart, default=float("nan"))


def samples(seed: Seed, count: int = 5) -> list[str]:
    """What the answers look like, a line a set."""
    told = []
    for name in ("before", "after", "control"):
        answers: list[Answer] = getattr(seed.outcome, name)
        chosen = answers[: count * SAMPLES : SAMPLES]
        told.append(f"{name} ({mean_reward(answers):.2f}): " + " | ".join(repr(a.text) for a in chosen))
    return told
