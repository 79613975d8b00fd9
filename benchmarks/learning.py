"""What learning reaches on a real model, and what it leaves alone.

    python benchmarks/learning.py --json OUT [--quick] [--data DIR] [--only NAME ...] [--check] [--threads N]

Each part of `learning_parts` says in its docstring what it measures; formulas of the rewards are in
`learning_parts/rewards.py`, and the prompts are in `learning_data`. Everything runs on SmolLM2-135M-Instruct.
Measurements are kept in OUT's folder by part and seed: a run that was cut off goes on where it was, as long as the
code is the same. ``--quick`` takes one seed and smaller counts, with the same row ids.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from learning_parts.plan import ROOT, Run, say
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
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is not kept yet, prints, writes, checks."""
    args = parser().parse_args(arguments)
    report = Report("learning, quick (no figures to quote)" if args.quick else "learning")
    run = Run(args.quick, args.data, args.json, threads=args.threads)
    with ExitStack() as stack:
        if not args.no_original and "original" in args.only:
            try:
                run.original = stack.enter_context(Original.start(cache_dir() / "benchmarks"))
            except OriginalUnavailable as error:
                report.note(f"the original is left out: {error}")
        for name in args.only:
            began = time.perf_counter()
            importlib.import_module(f"learning_parts.{name}").add_rows(report, run)
            say(f"part {name}: {time.perf_counter() - began:.0f} s")
    finish(report, args)


if __name__ == "__main__":
    main()
