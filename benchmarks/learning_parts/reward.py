"""What 200 pieces of feedback gain on prompts that nobody judged, in three families (`rewards` has their formulas).

A fresh server a family and seed, with the guide's research profile. Two of its tenants ask the same training
prompts: one gets its rewards, the other gets its own in another order. Both then answer the unseen prompts, four
samples each; the first also after 25, 50, 100 and 400 pieces (two samples). From the answers:

* `reward_gain.*` (percent) and `reward_abs.*`: after 200 against before; `reward_low.*`: lower end of the 95 %
  interval of a paired bootstrap over seeds and prompts; `reward_control.*`: how far the control moved, in units
  of two standard errors of its difference;
* `distinct2.*`: share of different word pairs among equally many, percent of before; beside it, the same of one
  answer a prompt at a time, so without what the samples of a prompt have in common; `base_ppl.*`: perplexity of
  the answers under the model alone, times that of before; `relevance.*`: cosine of prompt and answer in the
  static embedding, percent of before;
* `unrelated_ppl`: perplexity of text from elsewhere under the adapter that serves it when it is asked for like any
  request, percent above that of the model alone; the worst family. `unrelated_forced`: the same under the adapter
  that served most answers, whatever serves it: what the adapter itself does to such text.

With several anchors (weights of the pull to the model alone) the first family also gives the frontier of reward
against distance. Both curves are plotted beside the report.

`--quick`: 50 pieces in place of 200, twelve unseen prompts, two samples; the default anchor only.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from report import Report, Row

from .answers import UNRELATED, Judge, bootstrap, by_prompt, distinct2_ratio, noise, one_a_prompt, relevance
from .arms import RESEARCH, Arm, answers_of, measure
from .plan import Run
from .plots import curves
from .rewards import Family, families
from .segments import FrozenModel

__all__ = ["add_rows"]

FULL = 200
CHECKPOINTS = (25, 50, 100, 200, 400)
ANCHORS = (0.01, 0.16, 0.64)
"""of the frontier, beside the default"""
LEAST = 1e-9
"""what "above 0" means to a row whose goal is ``>=``"""

Told = Mapping[str, Any]


def add_rows(report: Report, run: Run) -> None:
    """All families, seed by seed."""
    judge = Judge(FrozenModel(), run.data, segments=4 if run.quick else 16)
    if run.data is None:
        report.note(
            f"unrelated_*: --data names no folder, so the standard library's source stands in for {UNRELATED}"
        )
    told = {
        family.name: [
            run.kept(f"reward.{family.name}.{seed}", _measure(family, seed, run, judge)) for seed in run.seeds
        ]
        for family in families().values()
    }
    for family in families().values():
        _rows(report, run, family, told[family.name])
    for row, part, goal in (("unrelated_ppl", "with", 0.5), ("unrelated_forced", "forced", None)):
        found = {name: [_unrelated(one, part) for one in seeds] for name, seeds in told.items()}
        worst = max(found.values(), key=statistics.median)
        compared: dict[str, float | str] = {name: statistics.median(each) for name, each in found.items()}
        compared["text"] = judge.text
        if part == "with":
            alone = [one["unrelated"]["left_alone"] / one["unrelated"]["texts"] for one in chain(*told.values())]
            compared["left alone, %"] = 100 * statistics.mean(alone)
        report.measured(row, worst, "%", goal=goal, compared=compared)
    _curves(report, run, judge, told)


def _arm(family: Family, seed: int, run: Run) -> Arm:
    if run.quick:
        return Arm(f"reward {family.name}", family, seed, CHECKPOINTS[:2], CHECKPOINTS[1], samples=2, unseen=12)
    return Arm(f"reward {family.name}", family, seed, CHECKPOINTS, FULL)


def _measure(family: Family, seed: int, run: Run, judge: Judge) -> Any:
    return lambda: measure(_arm(family, seed, run), run, judge)


def _unrelated(told: Told, part: str) -> float:
    return float(100 * (told["unrelated"][part] / told["unrelated"]["without"] - 1))


def _rows(report: Report, run: Run, family: Family, told: Sequence[Told]) -> None:
    name, arm = family.name, _arm(family, 0, run)
    before, after, control = (
        np.array([by_prompt(answers_of(one[part]), family) for one in told])
        for part in ("before", "after", "control")
    )
    gains = 100 * (after.mean(axis=1) / before.mean(axis=1) - 1)
    means = {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "of the means": 100 * float(after.mean() / before.mean() - 1),
        "feedbacks": arm.full,
        "answers a seed": before.shape[1] * arm.samples,
    }
    low, high = bootstrap(after - before)
    report.measured(f"reward_gain.{name}", list(gains), "%", goal=55, direction=">=", compared=means)
    absolute = list((after - before).mean(axis=1))
    report.measured(f"reward_abs.{name}", absolute, "reward", goal=0.2, direction=">=")
    report.add(
        Row(f"reward_low.{name}", low, "reward", (low, high), len(told), goal=LEAST, direction=">=",
            compared={"remark": "95 % interval of a paired bootstrap over seeds and prompts"})
    )  # fmt: skip
    shifts = [abs(c.mean() - b.mean()) / noise(b, c) for b, c in zip(before, control, strict=True)]
    moved = 100 * float(control.mean() / before.mean() - 1)
    report.measured(f"reward_control.{name}", shifts, "2 se", goal=1.0, compared={"gain, %": moved})
    pairs = [(answers_of(one["before"]), answers_of(one["after"])) for one in told]
    distinct = [100 * distinct2_ratio(*pair) for pair in pairs]
    single = [100 * one_a_prompt(*pair) for pair in pairs]
    compared = {"one answer a prompt": statistics.median(single)}
    report.measured(f"distinct2.{name}", distinct, "% of base", goal=95, direction=">=", compared=compared)
    ppl = [one["points"][str(arm.full)]["ppl"] / one["points"]["0"]["ppl"] for one in told]
    report.measured(f"base_ppl.{name}", ppl, "x", goal=1.4)
    topic = [100 * relevance(late) / relevance(early) for early, late in pairs]
    report.measured(f"relevance.{name}", topic, "% of base", goal=90, direction=">=")
    for what in ("before", "after"):
        report.note(
            f"{name}, {what}: "
            + " | ".join(repr(a["text"]) for a in told[0][what][: 3 * arm.samples : arm.samples])
        )


def _curves(report: Report, run: Run, judge: Judge, told: Mapping[str, Sequence[Told]]) -> None:
    """Gain by number of feedbacks, and reward by distance, of each family and of the first one's other anchors."""
    gains: dict[str, list[tuple[float, float]]] = {}
    frontier: dict[str, list[tuple[float, float]]] = {}
    for name, seeds in told.items():
        numbers = sorted(map(int, seeds[0]["points"]))
        start = statistics.median(one["points"]["0"]["reward"] for one in seeds)
        middle = {
            n: {k: statistics.median(one["points"][str(n)][k] for one in seeds) for k in ("reward", "kl")}
            for n in numbers
        }
        gains[name] = [(n, 100 * (middle[n]["reward"] / start - 1)) for n in numbers]
        frontier[name] = [(middle[n]["kl"], middle[n]["reward"]) for n in numbers]
        for n in CHECKPOINTS:
            at, value = middle.get(n, {}), gains[name][numbers.index(n)][1] if n in numbers else None
            compared = {k: at.get(k) for k in ("reward", "kl")}
            report.add(Row(f"reward_by_feedbacks.{name}.{n}", value, "%", n=len(seeds), compared=compared))
    if run.quick:
        for anchor in ANCHORS:
            report.add(Row(f"frontier.anchor.{anchor:g}", None, "reward", n=0))
    else:
        frontier["anchors"] = _anchors(report, run, judge)
    for suffix, picture in (
        ("gain.svg", curves("Gain on unseen prompts", "pieces of feedback", "gain, %", gains)),
        (
            "frontier.svg",
            curves("Reward and distance", "KL to the model alone, nats per token", "reward", frontier),
        ),
    ):
        file = run.beside(suffix)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(picture)
            report.note(f"plotted in {file.name}")


def _anchors(report: Report, run: Run, judge: Judge) -> list[tuple[float, float]]:
    family = next(iter(families().values()))
    points = []
    for anchor in ANCHORS:
        sona = {"engine": dict(RESEARCH), "learner": {"anchor": anchor}}
        arm = Arm(f"anchor {anchor:g}", family, 0, (FULL,), FULL, control=False, sona=sona)
        told = run.kept(f"reward.anchor.{anchor:g}", lambda arm=arm: measure(arm, run, judge))
        point = told["points"][str(FULL)]
        points.append((point["kl"], point["reward"]))
        report.add(
            Row(
                f"frontier.anchor.{anchor:g}",
                point["reward"],
                "reward",
                compared={"kl": point["kl"], "base_ppl": point["ppl"] / told["points"]["0"]["ppl"]},
            )
        )
    return sorted(points)
