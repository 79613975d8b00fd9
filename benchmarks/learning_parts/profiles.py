"""The guide's four profiles in the reward test: which is fastest, which learns most.

`profile.*.gain` (percent): the concise family after 200 pieces of feedback (`--quick`: 24), as in `reward`.
`profile.*.us_per_token`: what the adapter of such a profile costs a token, micro and base pair together, in an
engine at the guide's hidden size that has learned of 40 directions, so that its base pair has all of its rank; the
profiles take turns, so that whatever disturbs the machine disturbs all.

The guide says that realtime has the lowest latency and research the largest gain.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from guide_parts.inputs import DIM, clustered, record, units
from guide_parts.rounds import Block, block_of, interleave
from numpy.typing import NDArray
from report import Report

from sona_stream.engine import SonaConfig, SonaEngine

from .answers import Judge, by_prompt
from .arms import Arm, answers_of, measure
from .plan import Run
from .reward import FULL
from .rewards import families
from .segments import FrozenModel

__all__ = ["PROFILES", "add_costs", "add_rows", "settings"]

PROFILES = ("realtime", "batch", "research", "edge")
_FIELDS = (
    "micro_lora_rank",
    "base_lora_rank",
    "micro_lora_lr",
    "base_lora_lr",
    "ewc_lambda",
    "quality_threshold",
    "pattern_clusters",
    "trajectory_capacity",
    "background_interval_ms",
)


def settings(profile: str) -> dict[str, Any]:
    """The profile as the `engine` section of a server's file."""
    config = getattr(SonaConfig, profile)(DIM)
    return {name: getattr(config, name) for name in _FIELDS}


def add_rows(report: Report, run: Run) -> None:
    """`profile.{realtime,batch,research,edge}.{gain,us_per_token}`."""
    family, judge = families()["concise"], Judge(FrozenModel(), run.data, segments=4)
    feedbacks, samples, unseen = (24, 2, 10) if run.quick else (FULL, 4, None)
    middle: dict[str, float] = {}
    for profile in PROFILES:
        gains, starts = [], []
        for seed in run.seeds:
            sona = {"engine": settings(profile)}
            arm = Arm(
                f"profile {profile}",
                family,
                seed,
                (feedbacks,),
                feedbacks,
                samples,
                control=False,
                sona=sona,
                unseen=unseen,
            )
            told = run.kept(f"profile.{profile}.{seed}", lambda arm=arm: measure(arm, run, judge))
            before, after = (by_prompt(answers_of(told[part]), family).mean() for part in ("before", "after"))
            gains.append(float(100 * (after / before - 1)))
            starts.append(float(before))
        middle[profile] = statistics.median(gains)
        report.measured(
            f"profile.{profile}.gain", gains, "%", compared={"reward before": statistics.median(starts)}
        )
    costs = add_costs(report, run)
    fastest = min(PROFILES, key=lambda name: statistics.median(costs[name]))
    best = max(PROFILES, key=lambda name: middle[name])
    report.note(f"fastest: {fastest} (the guide: realtime); learns most: {best} (the guide: research)")


def add_costs(report: Report, run: Run) -> dict[str, list[float]]:
    """`profile.*.us_per_token` -> seconds a token of each profile."""
    costs: dict[str, list[float]] = run.kept("profile.cost", lambda: _costs(4 if run.quick else 40))
    for profile in PROFILES:
        report.measured(f"profile.{profile}.us_per_token", [1e6 * cost for cost in costs[profile]], "us")
    return costs


def _costs(rounds: int) -> dict[str, list[float]]:
    """Seconds a token of each profile."""
    inputs = list(units(64, DIM, np.random.default_rng(1)))
    blocks = {name: _block(_grown(getattr(SonaConfig, name)(DIM)), inputs) for name in PROFILES}
    return interleave(blocks, rounds=rounds, block_s=0.004)


def _grown(config: SonaConfig) -> SonaEngine:
    """Its pairs have the ranks that the profile allows: each of 40 kinds of question has a direction of its own."""
    engine, random = SonaEngine.with_config(config), np.random.default_rng(3)
    kinds, directions = units(40, DIM, random), units(40, DIM, random)
    for i, query in enumerate(clustered(160, kinds, 0.3, random)):
        liked = i % 2 == 0  # of each kind always the same: opinions that disagree move nothing
        quality, reward = (0.9, 0.9) if liked else (0.3, 0.2)
        record(engine, query, query + directions[i % 40], quality=quality, reward=reward)
    engine.force_learn()
    return engine


def _block(engine: SonaEngine, inputs: list[NDArray[np.float32]]) -> Block:
    return block_of(lambda x: engine.apply_base_lora(0, engine.apply_micro_lora(x)), inputs)
