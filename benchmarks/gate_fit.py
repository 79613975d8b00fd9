"""The memory's gate without a language model: what it lets act, and the weights it goes by.

    python benchmarks/gate_fit.py [--fit] [--report] [--json OUT]

Without options: recall and false activations of the product as it is, on the half for fitting, with that half's
corrections in the memory. ``--fit`` fits the constants of `engine/memory/comparison.py`,
`small_words.py` and `context.py` anew and prints them, with
what cross-validation expects of them. ``--report`` asks the other half, with all corrections in the memory: to be
used once, after fitting.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from learning_parts import gate_fit, gate_small, gate_turns
from learning_parts.asking import Half, asked, small_words, stored
from learning_parts.gating import Encoders, acting, shares
from report import Report, Row, add_arguments, finish

from sona_stream.engine.memory import comparison as rules
from sona_stream.engine.memory import context
from sona_stream.engine.memory import small_words as small

GOALS = {"paraphrase": 95.0, "near_miss": 95.0, "same_form": 98.0, "unrelated": 99.5}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints, writes, checks."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(options)
    options.add_argument("--fit", action="store_true", help="fit the constants, and print them")
    options.add_argument("--report", action="store_true", help="ask the half that nothing was fitted on")
    args = options.parse_args(arguments)
    report, encoders = Report("gate"), Encoders()
    if args.fit:
        _fit(report, encoders)
    half: Half = "report" if args.report else "fit"
    corrections = stored("fit", "report") if args.report else stored("fit")
    answered, lost = asyncio.run(acting(encoders, corrections, asked(half)))
    for kind, (right, count) in shares(answered).items():
        chosen = [one for one in answered if one.asked.kind == kind]
        compared = {
            "right": right,
            "another acted": sum(bool(one.acting) and not one.right for one in chosen),
            "weakest gate": min((one.gates[0] for one in chosen if one.right and one.gates), default=None),
            "candidates": float(np.mean([one.candidates for one in chosen])),
        }
        goal = GOALS.get(kind) if args.report else None
        share = 100 * right / count
        report.add(Row(f"gate.{half}.{kind}", share, "%", n=count, goal=goal, direction=">=", compared=compared))
    answered, _ = asyncio.run(acting(encoders, *small_words(half)))
    for kind, (right, count) in shares(answered).items():
        report.add(Row(f"gate.{half}.small_words_{kind}", 100 * right / count, "%", n=count))
    turns = gate_turns.conversations(half)
    told = asyncio.run(gate_turns.acting(encoders, turns))
    for name in ("own", "reworded", "other_kept"):
        report.add(Row(f"gate.{half}.turns_{name}", getattr(told, name), "%", n=len(turns)))
    report.note(f"{lost} of {len(corrections)} corrections superseded another one's question")
    finish(report, args)


def _fit(report: Report, encoders: Encoders) -> None:
    fitting = gate_fit.pairs(encoders, stored("fit"), asked("fit"))
    more = gate_fit.pairs(encoders, stored("training"), asked("training"))
    odds = gate_fit.cross_validated(fitting, more)
    limits = [gate_fit.threshold(fitting, one) for one in odds]
    found = gate_fit.fit(gate_fit.joined(fitting, more))
    expected = [100 * gate_fit.recall(fitting, one, at) for one, at in zip(odds, limits, strict=True)]
    report.measured("gate.expected.paraphrase", expected, "%", compared={"threshold": float(np.median(limits))})
    _print("comparison", found.bias - float(np.median(limits)), rules.WEIGHTS, found.weights)
    _fit_small(report, encoders)
    scenes = gate_turns.scenes(encoders, gate_turns.conversations("training"))
    through, kept = gate_turns.cross_validated(scenes)
    report.add(Row("gate.expected.turns", through, "%", n=len(scenes.same), compared={"others kept": kept}))
    before = gate_turns.fit(scenes)
    _print("context", before.bias, context.WEIGHTS, before.weights)


def _fit_small(report: Report, encoders: Encoders) -> None:
    sets = (small_words("fit"), (stored("fit"), asked("fit")), (stored("training"), asked("training")))
    found = gate_small.changes([one for each in sets for one in gate_fit.met(encoders, *each)])
    odds = gate_small.cross_validated(found)
    limits = [gate_small.threshold(found, one) for one in odds]
    for kind in ("harmless", "harmful"):
        acting = [100 * gate_small.share(found, one, at, kind) for one, at in zip(odds, limits, strict=True)]
        report.measured(
            f"gate.expected.acting_{kind}", acting, "%", compared={"threshold": float(np.median(limits))}
        )
    fitted = gate_small.fit(found)
    _print("small_words", fitted.bias - float(np.median(limits)), small.WEIGHTS, fitted.weights)


def _print(module: str, bias: float, names: Iterable[str], weights: Iterable[float]) -> None:
    print(f"engine/memory/{module}.py\nBIAS = {bias:.3f}")
    for name, weight in zip(names, weights, strict=True):
        print(f'    "{name}": {weight:.3f},')


if __name__ == "__main__":
    main()
