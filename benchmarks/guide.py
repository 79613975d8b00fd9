"""Every number in the guide, beside ours and beside the original package measured in the same run.

    python benchmarks/guide.py --json OUT [--check] [--live-json FILE] [--original-slow]

Rounds of ours and of the references are interleaved; a row's value is the median of its rounds and its spread their
least and greatest. ``compared`` holds the guide's figure, the original's (needs node and npm; left out with a note
where they are missing) and the ratios, above 1 where ours is better. Ratios are to be read from a quiet machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from guide_parts import learning, memory, patterns, pipeline, speed
from guide_parts.plan import FULL, QUICK, Run
from original import Original, OriginalUnavailable
from report import Report, add_arguments, finish

from sona_stream.config.folders import cache_dir

SECTIONS: dict[str, Callable[[Report, Run], None]] = {
    "speed": speed.add_rows,
    "pipeline": pipeline.add_rows,
    "patterns": patterns.add_rows,
    "memory": memory.add_rows,
    "learning": learning.add_rows,
}


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(options)
    options.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to measure")
    options.add_argument("--quick", action="store_true", help="a few calls of everything: shows rows, not figures")
    options.add_argument("--no-original", action="store_true", help="leave the npm package out")
    options.add_argument("--original-slow", action="store_true", help="let the original learn 10,000 (minutes)")
    options.add_argument("--live-json", type=Path, metavar="FILE", help="what live_adaptation.py --json wrote")
    options.add_argument(
        "--live-seconds", type=float, default=0.0, metavar="S",
        help="without --live-json: run the live example for at most so long (default: do not run it)",
    )  # fmt: skip
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, writes, checks."""
    args = parser().parse_args(arguments)
    report = Report("guide, quick (no figures to quote)" if args.quick else "guide")
    run = Run(
        QUICK if args.quick else FULL,
        original_slow=args.original_slow,
        live_json=args.live_json,
        live_seconds=args.live_seconds,
    )
    with ExitStack() as stack:
        if not args.no_original:
            try:
                run.original = stack.enter_context(Original.start(cache_dir() / "benchmarks"))
            except OriginalUnavailable as error:
                report.note(f"the original is left out: {error}")
        for name in args.only:
            began = time.perf_counter()
            measure(report, run, name)
            print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    finish(report, args)


def measure(report: Report, run: Run, name: str) -> None:
    """One section; again without the original when that breaks down."""
    before = len(report.rows)
    try:
        SECTIONS[name](report, run)
    except OriginalUnavailable as error:
        report.note(f"the original is left out from {name!r} on: {error}")
        run.original = None
        del report.rows[before:]
        SECTIONS[name](report, run)


if __name__ == "__main__":
    main()
