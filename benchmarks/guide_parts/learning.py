"""Rows about quality: the engine alone on a task that the original gets too, and the live example's gain.

The task (also in ``original/probe.js``): inputs come from four clusters, each with a hidden target; quality is
(1 + cosine(output, target)) / 2, so 0.5 means knowing nothing. Each trajectory shows four noisy candidates with
their rewards. Quality is measured on inputs that were never trained on; the control gets random rewards.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from report import Report, Row

from sona_stream.engine import SonaConfig, SonaEngine

from .inputs import F32, units
from .plan import Run, compared
from .rounds import middle

__all__ = ["Outcome", "add_rows", "four_clusters", "live", "read_live"]

TASK_DIM = 256
TEST = 200
EXAMPLE = Path(__file__).parents[2] / "examples" / "live_adaptation.py"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Mean quality on unseen inputs."""

    before: float
    after: float

    @property
    def gain_pct(self) -> float:
        """Relative change in percent."""
        return 100 * (self.after / self.before - 1)


def add_rows(report: Report, run: Run) -> None:
    """`engine_quality_gain_pct.*`, `engine_quality_gain_pct_by_lr.*` and `quality_gain_pct`."""
    for name, guide in (("batch", 25.0), ("research", 52.5)):
        _engine_row(report, run, name, guide)
    _rates(report, run)
    live(report, run)


def _profile(name: str) -> SonaConfig:
    config: SonaConfig = getattr(SonaConfig, name)(TASK_DIM)
    return config


def _engine_row(report: Report, run: Run, name: str, guide: float) -> None:
    seeds, count = range(run.effort.seeds), run.effort.learning
    gains = [four_clusters(_profile(name), count, seed).gain_pct for seed in seeds]
    control = [four_clusters(_profile(name), count, seed, shuffled=True).gain_pct for seed in seeds]
    theirs: list[float] = []
    if run.original:
        for seed in seeds:
            options = {
                "profile": name,
                "dim": TASK_DIM,
                "trajectories": count,
                "seed": 40 + seed,
                "shuffled": False,
            }
            theirs.append(Outcome(**run.original.ask("learning", **options)).gain_pct)
    remark = f"engine alone, four clusters, {count} trajectories; the guide names no task for its figure"
    versus = compared(
        middle(gains), guide=guide, original=middle(theirs), more_is_better=True,
        control_random_rewards=middle(control), remark=remark,
    )  # fmt: skip
    report.measured(f"engine_quality_gain_pct.{name}", gains, "%", compared=versus)


def _rates(report: Report, run: Run) -> None:
    """The guide calls 0.002 the learning rate of "max quality gain"."""
    for rate in (0.0005, 0.001, 0.002, 0.004):
        config = dataclasses.replace(_profile("research"), micro_lora_lr=rate, warn=False)
        gains = [four_clusters(config, run.effort.learning, seed).gain_pct for seed in range(run.effort.seeds)]
        versus = {"guide": "best at 0.002"}
        report.measured(f"engine_quality_gain_pct_by_lr.{rate:g}", gains, "%", compared=versus)


def four_clusters(config: SonaConfig, trajectories: int, seed: int, *, shuffled: bool = False) -> Outcome:
    """One run of the task. ``shuffled`` gives random rewards and qualities instead of the true ones."""
    random = np.random.default_rng(40 + seed)
    centres, targets = units(4, config.hidden_dim, random), units(4, config.hidden_dim, random)

    def draw(n: int) -> tuple[F32, F32]:
        which = random.integers(0, 4, n)
        rows = centres[which] + np.float32(0.3) * units(n, config.hidden_dim, random)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True), targets[which]

    engine = SonaEngine.with_config(config)
    test, wanted = draw(TEST)
    before = float(_quality(engine.apply_micro_lora(test), wanted).mean())
    for x, target in zip(*draw(trajectories), strict=True):
        out = engine.apply_micro_lora(x)
        candidates = out + np.float32(0.5) * units(4, config.hidden_dim, random)
        rewards = random.random(4) if shuffled else _quality(candidates, target)
        trajectory = engine.begin_trajectory(x)
        for candidate, reward in zip(candidates, rewards, strict=True):
            engine.add_trajectory_step(trajectory, candidate, [], float(reward))
        engine.end_trajectory(trajectory, random.random() if shuffled else float(_quality(out[None], target)[0]))
    engine.flush()
    return Outcome(before, float(_quality(engine.apply_micro_lora(test), wanted).mean()))


def _quality(rows: F32, targets: F32) -> F32:
    """(n, d), (n, d) or (d,) -> (n,) in [0, 1]"""
    lengths = np.linalg.norm(rows, axis=-1) * np.linalg.norm(targets, axis=-1)
    return np.asarray(np.clip((1 + (rows * targets).sum(axis=-1) / lengths) / 2, 0, 1), dtype=np.float32)


def read_live(file: Path) -> tuple[float, float, float]:
    """The live example's ``--json``: (gain in percent, its control's, reward before)."""
    rows: dict[str, Any] = {row["id"]: row["value"] for row in json.loads(file.read_text())["rows"]}
    before, after, control = (float(rows[f"reward_{name}"]) for name in ("before", "after", "control_after"))
    return 100 * (after / before - 1), 100 * (control / before - 1), before


def live(report: Report, run: Run) -> None:
    """The row `quality_gain_pct`."""
    with tempfile.TemporaryDirectory() as folder:
        file, remark = run.live_json, "from the live example's own run"
        if file is None:
            file, remark = _run_example(Path(folder) / "live.json", run.live_seconds)
        if file is None or not file.exists():
            report.add(Row("quality_gain_pct", None, "%", goal=40, direction=">=", compared={"remark": remark}))
            return
        gain, control, before = read_live(file)
    versus = compared(
        gain, guide=52.5, more_is_better=True, reward_before=before, control=control,
        remark=f"{remark}; the original is tied to no model: it has nothing to measure here",
    )  # fmt: skip
    report.add(Row("quality_gain_pct", gain, "%", compared=versus, goal=40, direction=">="))


def _run_example(file: Path, seconds: float) -> tuple[Path | None, str]:
    if seconds <= 0:
        return None, "not measured: give --live-json FILE of `examples/live_adaptation.py --json FILE`"
    command = [sys.executable, str(EXAMPLE), "--json", str(file)]
    try:
        ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return None, f"not measured: the live example did not finish in {seconds:g} s; give --live-json FILE"
    if ran.returncode and not file.exists():
        return None, f"not measured: the live example failed: {ran.stderr.strip()[-200:]}"
    return file, "from the live example, run here"
