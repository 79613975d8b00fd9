"""The one format of every benchmark: rows with an id, a value, its spread and its goal.

    {"benchmark", "commit", "machine", "rows": [{"id", "value", "unit", "spread": [lo, hi], "n",
     "compared": {name: value}, "goal", "ok"}]}

``compared["remark"]`` is a sentence; the table prints it under its row. Where ``ok`` needs more than the goal, what
it needs is in ``compared`` as well.

A benchmark makes a `Report`, adds rows, and ends with `finish(report, args)`, which prints the table, writes
``--json`` and, under ``--check``, exits with 1 naming the rows whose goal is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

__all__ = ["Report", "Row", "add_arguments", "finish"]

Direction = Literal["<=", ">=", "=="]


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured figure. ``goal`` is None where there is nothing to reach (a baseline, a reference)."""

    id: str
    value: float | None
    unit: str
    spread: tuple[float, float] | None = None
    n: int = 1
    compared: Mapping[str, float | str | None] = dataclasses.field(default_factory=dict)
    goal: float | None = None
    direction: Direction = "<="
    also: bool | None = None
    """whether what `ok` needs besides the goal holds; None: it needs nothing else"""

    @property
    def ok(self) -> bool | None:
        """None without a goal; a row that could not be measured misses its goal."""
        if self.goal is None or self.also is False:
            return self.also
        if self.value is None:
            return False
        if self.direction == "<=":
            return bool(self.value <= self.goal)
        return bool(self.value >= self.goal if self.direction == ">=" else self.value == self.goal)


class Report:
    """The rows of one run."""

    def __init__(self, benchmark: str) -> None:
        self.benchmark = benchmark
        self.rows: list[Row] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """A line under the table (not in the JSON), such as what could not be measured."""
        self.notes.append(text)

    def add(self, row: Row) -> Row:
        """Append a row and hand it back."""
        self.rows.append(row)
        return row

    def measured(
        self, id: str, samples: Sequence[float], unit: str, *, goal: float | None = None, **more: Any
    ) -> Row:
        """A row from samples: the median, with their minimum and maximum as the spread."""
        return self.add(
            Row(id, statistics.median(samples), unit, (min(samples), max(samples)), len(samples), goal=goal, **more)
        )

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        rows = [
            {
                "id": row.id,
                "value": row.value,
                "unit": row.unit,
                "spread": list(row.spread) if row.spread else None,
                "n": row.n,
                "compared": dict(row.compared),
                "goal": row.goal,
                "ok": row.ok,
            }
            for row in self.rows
        ]
        return {"benchmark": self.benchmark, "commit": _commit(), "machine": _machine(), "rows": rows}

    def table(self) -> str:
        """The same rows for a person."""
        lines = [f"{'id':<38} {'value':>12} {'unit':<10} {'spread':<24} {'goal':>10}  ok    compared"]
        for row in self.rows:
            spread = f"[{row.spread[0]:.4g} .. {row.spread[1]:.4g}]" if row.spread else ""
            goal = "" if row.goal is None else f"{row.direction} {row.goal:g}"
            ok = {None: "", True: "yes", False: "NO"}[row.ok]
            value = "-" if row.value is None else f"{row.value:.4g}"
            shown = {k: v for k, v in row.compared.items() if v is not None and k != "remark"}
            compared = "  ".join(f"{k}={_short(v)}" for k, v in shown.items())
            line = f"{row.id:<38} {value:>12} {row.unit:<10} {spread:<24} {goal:>10}  {ok:<4}  {compared}"
            lines.append(line.rstrip())
            if row.compared.get("remark"):
                lines.append(f"    {row.compared['remark']}")
        return "\n".join(lines + [f"note: {text}" for text in self.notes])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--json OUT` and `--check`, which every benchmark takes."""
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows as JSON")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a row misses its goal")


def finish(report: Report, args: argparse.Namespace) -> None:
    """Print, write, check."""
    print(report.table())
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report.as_dict(), indent=1) + "\n")
    missed = [row.id for row in report.rows if row.ok is False]
    if args.check and missed:
        sys.exit(f"goal missed: {', '.join(missed)}")


def _short(value: float | str | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _commit() -> str:
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parent,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


def _machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
