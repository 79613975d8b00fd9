"""What learning reaches on a real model, and what it leaves alone.

    python benchmarks/learning.py --json OUT [--quick] [--data DIR] [--only NAME ...] [--check]

Each part of `learning_parts` says in its docstring what it measures; formulas of the rewards are in
`learning_parts/rewards.py`, and the prompts are in `learning_data`. Everything runs on SmolLM2-135M-Instruct.
Measurements are kept in OUT's folder by part and seed: a run that was cut off goes on where it was, as long as the
code, the libraries, the texts and the encoder of the memory are the same.

Without --data or without the extra `memory`, what needs them has rows without values: they miss their goals.

On two cores without other work the full run is expected to take six and a half hours, added up from what its parts
cost: reward 2.5, correction 1.5, profiles 1, collapse .5, streams .4, forgetting .4, the others .1. ``--quick`` is
expected to take ten minutes: one seed and smaller counts, with the same row ids (those that it does not reach have
no value); parts run side by side then, one core each, but for those that measure time, which run alone. Its figures
are not to be quoted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from learning_parts import side_by_side
from learning_parts.plan import ROOT, Clock, Run, say
from original import Original, OriginalUnavailable
from report import Report, add_arguments, finish

from sona_stream.config.folders import cache_dir

PARTS = (
    "original",
    "learner_cost",
    "reward",
    "collapse",
    "profiles",
    "correction",
    "memory_size",
    "streams",
    "forgetting",
)
"""Modules of `learning_parts` with ``add_rows(report, run)``, in the order in which they run."""

TIMED = {"learner_cost": "add_rows", "memory_size": "add_rows", "profiles": "add_costs"}
"""What measures time, and so is measured before anything else runs beside it: functions of these parts."""

_DATA = ROOT.parent / "shared" / "data"


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(options)
    options.add_argument("--quick", action="store_true", help="one seed and smaller counts")
    options.add_argument(
        "--data",
        type=Path,
        default=_DATA if _DATA.is_dir() else None,
        help="folder that holds stream_text (default: %(default)s)",
    )
    options.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help="these parts"
    )
    options.add_argument("--no-original", action="store_true", help="without the npm package of the guide")
    options.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="of the model (default: %(default)s)"
    )
    options.add_argument(
        "--jobs", type=int, metavar="N", help="parts side by side, which share the threads (default: 1; --quick: 2)"
    )
    options.add_argument("--kept", type=Path, metavar="DIR", help="where measurements are kept (default: by OUT)")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is not kept yet, prints, writes, checks."""
    args = parser().parse_args(arguments)
    report = Report("learning, quick (no figures to quote)" if args.quick else "learning")
    jobs = min(args.threads, args.jobs or (2 if args.quick else 1))
    with ExitStack() as stack:
        if jobs > 1 and not (args.kept or args.json):
            args.kept = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = Run(args.quick, args.data, args.json, args.kept, threads=args.threads)
        if jobs > 1:
            _measure_ahead(args, run, jobs)
        if not args.no_original and "original" in args.only:
            try:
                run.original = stack.enter_context(Original.start(cache_dir() / "benchmarks"))
            except OriginalUnavailable as error:
                report.note(f"the original is left out: {error}")
        for name in args.only:
            _part(name, "add_rows", report, run)
    finish(report, args)


def _part(name: str, function: str, report: Report, run: Run) -> None:
    clock = Clock()
    getattr(importlib.import_module(f"learning_parts.{name}"), function)(report, run)
    seconds, cpu = clock.read()
    say(f"part {name}: {seconds:.0f} s, {cpu:.0f} s of a core")


def _measure_ahead(args: argparse.Namespace, run: Run, jobs: int) -> None:
    """What takes time, first alone and then side by side."""
    for name, function in TIMED.items():
        if name in args.only:
            _part(name, function, Report("times"), run)
    options = ["--jobs", "1", "--threads", str(args.threads // jobs), "--kept", str(run.folder)]
    options += ["--quick"] if args.quick else []
    options += ["--data", str(args.data)] if args.data else []
    options += ["--no-original"] if args.no_original else []
    side_by_side.measure([name for name in side_by_side.ORDER if name in args.only], options, jobs)


if __name__ == "__main__":
    main()
