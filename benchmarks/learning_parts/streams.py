"""Adaptation to text, predict first and learn then: perplexity against the frozen model, in percent.

Six domains, 60 segments of 256 tokens each (`--quick`: 8), one pass, the whole vocabulary; a segment is a context
of its own and is predicted with what was learned from those before it. Arms:

- `adam`: dynamic evaluation of the micro pair by Adam, the published reference
- `micro2`: the learner's micro pair of rank 2
- `base16`: with a base pair of rank 16
- `memory`: base16 with the tenant's last 65,536 tokens as a memory that no query gates. It is `stream_memory`, a
  mixture of this benchmark, and shows what such a memory can reach; the product remembers answers, behind a gate on
  the question, and ships nothing of the kind

Rows are medians over seeds (they decide the random rows of A); memory's spread is that of base16 below it. The
curve over segments is written beside the report.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from report import Report, Row

from sona_stream.lora import Capture, HiddenSpace
from sona_stream_adapters.head import Job
from sona_stream_adapters.local.encode import measure_space

from .head_host import HeadHost
from .plan import Run
from .segments import FrozenModel
from .stream_arms import Arm, BaseArm, MicroArm, PlainAdam
from .stream_memory import StreamMemory
from .stream_text import DOMAINS

__all__ = ["ARMS", "add_rows", "stream"]

ARMS = ("adam", "micro2", "base16", "memory")
GOALS = {
    ("micro2", "mean"): -5.0,
    ("base16", "mean"): -8.0,
    ("memory", "mean"): -24.0,
    ("memory", "code_anyio"): -40.0,
}
SEGMENTS, QUICK_SEGMENTS, LONG_SEGMENTS = 60, 8, 400
_LONG = ("gsm8k_style", "code_anyio", "wikitext2")
"""domains whose curve goes on to 400 segments in a full run"""
_REMARK = (
    "memory is this benchmark's own ungated mixture (nearest neighbours at three sharpnesses, a match model, gates "
    "learned online); the product ships none"
)

Told = Mapping[str, Sequence[float]]
"""arm -> mean log-likelihood per token of each segment; "frozen" among them"""


def add_rows(report: Report, run: Run) -> None:
    """``stream_ppl.<arm>.<domain>`` and ``.mean``."""
    if run.data is None:
        report.note("streams are not measured: --data names no folder")
        for arm in ARMS:
            for domain in (*DOMAINS, "mean"):
                _row(report, arm, domain, ())
        return
    torch.set_num_threads(run.threads)
    model, count = FrozenModel(), QUICK_SEGMENTS if run.quick else SEGMENTS
    told: dict[tuple[str, int], Told] = {}
    for domain in DOMAINS:
        for seed in run.seeds:
            asked = partial(measure, model, run, domain, count, seed)
            told[domain, seed] = run.kept(f"streams.{domain}.{seed}", asked)
    curves: dict[str, Any] = {f"{domain}.{seed}": value for (domain, seed), value in told.items()}
    for arm in ARMS:
        gains = {domain: [change(told[domain, seed], arm) for seed in run.seeds] for domain in DOMAINS}
        for domain in DOMAINS:
            _row(report, arm, domain, gains[domain])
        _row(report, arm, "mean", [statistics.mean(each) for each in zip(*gains.values(), strict=True)])
    if not run.quick:
        for domain in _LONG:
            name = f"streams.{domain}.long"
            curves[name] = run.kept(name, partial(measure, model, run, domain, LONG_SEGMENTS, 0))
            report.note(f"{domain}, {LONG_SEGMENTS} segments: {_listed(curves[name])}")
    if (file := run.beside("streams.json")) is not None:
        file.write_text(json.dumps(curves) + "\n")


def measure(model: FrozenModel, run: Run, domain: str, count: int, seed: int) -> Told:
    """One stream, all arms side by side."""
    assert run.data is not None
    segments = model.segments(domain, run.data, count)
    host = HeadHost(model.head(), model.model.fingerprint)
    space = Job(measure_space(model.model, is_busy=lambda: False)).run()
    return asyncio.run(stream(host, segments, space, seed))


async def stream(host: HeadHost, segments: Sequence[Capture], space: HiddenSpace, seed: int) -> Told:
    """Every arm over the same segments in turn."""
    curvature = await host.curvature(segments[:1])
    base16, memory = BaseArm(curvature, seed), StreamMemory(space)
    arms: dict[str, Arm] = {
        "adam": PlainAdam(curvature, seed),
        "micro2": MicroArm(curvature, seed),
        "base16": base16,
    }
    told: dict[str, list[float]] = {name: [] for name in ("frozen", *ARMS)}
    for segment in segments:
        evaluation = await host.evaluate([segment], base16.weights)
        told["frozen"].append(float(np.mean(evaluation.base_logprobs[0])))
        told["memory"].append(float(np.mean(memory.see(segment, evaluation.logprobs[0]))))
        for name, arm in arms.items():
            told[name].append(await arm.see(host, segment))
    return told


def change(told: Told, arm: str) -> float:
    """Of the perplexity against the frozen model's, percent."""
    gain = statistics.mean(told[arm]) - statistics.mean(told["frozen"])
    return 100.0 * (float(np.exp(-gain)) - 1.0)


def _row(report: Report, arm: str, domain: str, values: Sequence[float]) -> None:
    """Without ``values``: it could not be measured."""
    compared = {"remark": _REMARK} if (arm, domain) == ("memory", "mean") else {}
    value, spread = (statistics.median(values), (min(values), max(values))) if values else (None, None)
    goal = GOALS.get((arm, domain))
    report.add(Row(f"stream_ppl.{arm}.{domain}", value, "%", spread, len(values), compared, goal))


def _listed(told: Told) -> str:
    return ", ".join(f"{arm} {change(told, arm):+.1f} %" for arm in ARMS)
