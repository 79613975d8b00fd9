"""Rows about finding patterns and about forced learning, with the event loop watched while it runs."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
from report import Report

from sona_stream.engine import SonaConfig, SonaEngine

from .inputs import DIM, clustered, record, units
from .plan import Run, compared
from .rounds import Block, block_of, interleave, middle, original_block

__all__ = ["add_rows", "clock"]

US, MS = 1e6, 1e3
BEAT_S = 0.001


def add_rows(report: Report, run: Run) -> None:
    """`find_patterns_us.*` to `force_learn_loop_lag_p99_ms`."""
    _find(report, run)
    _force_learn(report, run)


def _bank(clusters: int) -> SonaEngine:
    """An engine with exactly this many patterns, far apart."""
    config = dataclasses.replace(SonaConfig.research(DIM), pattern_clusters=clusters, warn=False)
    engine = SonaEngine.with_config(config)
    random = np.random.default_rng(clusters)
    for row in clustered(max(clusters, 100), units(clusters, DIM, random), 0.3, random):
        record(engine, row, row, quality=0.8)
    engine.force_learn()
    stored = engine.get_stats()["patterns_stored"]
    if stored != clusters:
        raise RuntimeError(f"{stored} patterns where {clusters} clusters were shown")
    return engine


def _find(report: Report, run: Run) -> None:
    inputs = list(units(64, DIM, np.random.default_rng(1)))
    blocks: dict[str, Block] = {}
    for clusters in run.effort.patterns:
        engine = _bank(clusters)
        blocks[f"{clusters}"] = block_of(lambda x, engine=engine: engine.find_patterns(x, 3), inputs)
        if run.original:
            name = f"find{clusters}"
            change = {"patternClusters": clusters, "trajectoryCapacity": 1000}
            run.original.ask("make", name=name, profile="research", change=change)
            n = max(clusters, 100)
            run.original.ask("fill", name=name, n=n, clusters=clusters, spread=0.3, seed=clusters)
            run.original.ask("learn", name=name)
            blocks[f"original {clusters}"] = original_block(run.original, "find", name=name, k=3)
    samples = interleave(blocks, rounds=run.effort.rounds, block_s=run.effort.block_s)
    for clusters in run.effort.patterns:
        values = [s * US for s in samples[f"{clusters}"]]
        versus = compared(
            middle(values), guide=1300.0 if clusters == 100 else None,
            original=middle(samples.get(f"original {clusters}"), US),
        )  # fmt: skip
        if clusters == 100:
            versus["remark"] = "1.3 ms is from the original's source; the guide says that fewer clusters are faster"
        goal = 200 if clusters == 100 else None
        report.measured(f"find_patterns_us.{clusters}", values, "us", goal=goal, compared=versus)


def _force_learn(report: Report, run: Run) -> None:
    count, repeats = run.effort.force_learn, run.effort.repeats
    small, large, lags, idle = [], [], [], []
    for repeat in range(repeats):
        small.append(asyncio.run(_learn_beside_a_loop(_filled(500, repeat)))[0])
        seconds, lag = asyncio.run(_learn_beside_a_loop(_filled(count, repeat)))
        large.append(seconds)
        lags.append(MS * float(np.percentile(lag, 99)))
        idle.append(MS * float(np.percentile(asyncio.run(_idle(0.5)), 99)))
    theirs = _original_learn(run, 500)
    versus = compared(middle(small), original=theirs, remark="research profile, 100 clusters, 500 trajectories")
    report.measured("force_learn_500_s", small, "s", compared=versus)
    slow = _original_learn(run, count) if run.original_slow else None
    versus = compared(middle(large), original=slow)
    if slow is None:
        versus["remark"] = "the original takes minutes for 10,000 (measured with --original-slow)"
    report.measured("force_learn_10000_s", large, "s", goal=15, compared=versus)
    versus = {
        "idle": middle(idle),
        "remark": "the original stands still all the while: it learns on the loop's thread",
    }
    report.measured("force_learn_loop_lag_p99_ms", lags, "ms", goal=20, compared=versus)


def _filled(count: int, seed: int) -> SonaEngine:
    """A research engine with ``count`` trajectories around 32 centres, not yet consolidated."""
    random = np.random.default_rng(100 + seed)
    config = dataclasses.replace(SonaConfig.research(DIM), trajectory_capacity=count + 10, warn=False)
    engine = SonaEngine.with_config(config)
    centres = units(32, DIM, random)
    for first in range(0, count, 500):
        for row in clustered(min(500, count - first), centres, 0.5, random):
            record(engine, row, row, quality=0.8)
    return engine


async def _learn_beside_a_loop(engine: SonaEngine) -> tuple[float, list[float]]:
    """-> (seconds, how late each beat of a one-millisecond clock on the loop was)"""
    async with clock() as late:
        began = time.perf_counter()
        await asyncio.to_thread(engine.force_learn)
        seconds = time.perf_counter() - began
    return seconds, late


async def _idle(seconds: float) -> list[float]:
    """The same clock with nothing beside it."""
    async with clock() as late:
        await asyncio.sleep(seconds)
    return late


@asynccontextmanager
async def clock() -> AsyncIterator[list[float]]:
    """Collects the lateness, in seconds, of the beats due while the block ran and of the one it ended before."""
    late: list[float] = []
    over = asyncio.Event()
    beating = asyncio.create_task(_beat(late, over))
    try:
        yield late
    finally:
        over.set()
        await beating


async def _beat(late: list[float], over: asyncio.Event) -> None:
    due = time.perf_counter() + BEAT_S
    while not (over.is_set() and late):
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        now = time.perf_counter()
        while due <= now:  # a stall delays every beat within it, not only the first
            late.append(now - due)
            due += BEAT_S


def _original_learn(run: Run, count: int) -> float | None:
    if not run.original:
        return None
    run.original.ask("make", name="learn", profile="research", change={"trajectoryCapacity": count + 10})
    run.original.ask("fill", name="learn", n=count, clusters=32, spread=0.5, seed=100)
    seconds: float = run.original.ask("learn", name="learn")["seconds"]
    run.original.ask("drop", name="learn")
    return seconds
