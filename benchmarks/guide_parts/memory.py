"""Rows about memory: an edge engine, one trajectory, one pattern. Each figure comes from fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from report import Report, Row

from .plan import Run, compared
from .rounds import middle

__all__ = ["SMAPS", "add_rows", "child"]

MB = 1e6
SMAPS = Path("/proc/self/smaps_rollup")


def add_rows(report: Report, run: Run) -> None:
    """`edge_memory_mb` to `pattern_bytes`."""
    if not SMAPS.exists():
        remark = "not measured: this system does not tell the resident size of a process"
        for id, unit in (("edge_memory_mb", "MB"), ("trajectory_bytes", "bytes"), ("pattern_bytes", "bytes")):
            report.add(Row(id, None, unit, compared={"remark": remark}))
        return
    repeats = run.effort.repeats
    edge = [child("edge", 200) for _ in range(repeats)]
    held = 10_000 if repeats > 1 else 500
    research = [child("research", held) for _ in range(repeats)]
    patterns = [child("patterns", held // 10) for _ in range(repeats)]
    theirs = [run.original.memory("edge", 200) for _ in range(repeats)] if run.original else []
    their_growth = middle([each["growth"] / MB for each in theirs])
    growth = [each["growth"] / MB for each in edge]
    remark = "growth of the process by the engine, 200 trajectories and a learning cycle"
    versus = compared(middle(growth), guide=5.0, original=their_growth, remark=remark)
    report.measured("edge_memory_mb", growth, "MB", goal=5, compared=versus)
    imports = [each["imports"] / MB for each in edge]
    remark = (
        "numpy, numba and its compiler, loaded before the engine is built; enable_simd=False does without numba"
    )
    report.measured("edge_import_mb", imports, "MB", compared={"remark": remark})
    _trajectory(report, run, [each["each"] for each in research], held)
    each = [answer["each"] for answer in patterns]
    if any(answer["patterns"] != held // 10 for answer in patterns):
        raise RuntimeError(f"the patterns were not all stored: {patterns}")
    remark = "a centroid of 3072 float32 is 12 KB by itself"
    versus = compared(middle(each), guide=10_000.0, remark=remark)
    report.measured("pattern_bytes", each, "bytes", compared=versus)


def _trajectory(report: Report, run: Run, each: list[float], held: int) -> None:
    theirs = [run.original.memory("research", held)["trajectory_bytes"]] if run.original else []
    remark = (
        "query and activation of 3072 numbers, int8 with a scale. The guide's 3 KB do not hold even one of them "
        "in its own float32 (12 KB)"
    )
    versus = compared(middle(each), guide=3000.0, original=middle(theirs), remark=remark)
    report.measured("trajectory_bytes", each, "bytes", goal=7000, compared=versus)


def child(mode: str, n: int) -> dict[str, float]:
    """Bytes that a fresh process grew by: see `memory_child.py`."""
    script = Path(__file__).with_name("memory_child.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(script), mode, str(n)],
        check=False, capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip
    if run.returncode:
        raise RuntimeError(f"the process that measures memory failed: {run.stderr.strip()[-500:]}")
    answer: dict[str, float] = json.loads(run.stdout)
    return answer
