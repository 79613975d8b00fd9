"""What the plug-in costs inside vLLM, and how fast it acts: SmolLM2-135M-Instruct in float32 on one core.

    python benchmarks/vllm_hook.py --json OUT [--check] [--quick]

Two engines live side by side, plain vLLM and one with the plug-in, eight adapters and captures; rounds of both are
interleaved, every second one in reverse. CPU time is that of the worker's two methods of a step. The plug-in's own
time of a step is what lies between clocks above and below its wraps. A real `vllm serve` answers the PUTs and the
streams. vLLM's environment is the one that SONA_STREAM_VLLM_ENV names, or is made (see `vllm_env.py`).

What the rows count, where it could be argued:

- `wrap_us_8_bound` is of adapters that are all cut to the norm cap, the most work that a row can be; what adapters
  below it cost stands beside it. A round is the median of its steps; `mean` has the steps in it that write to the
  ring what the others left.
- The clocks' own time is taken off. Between two layers of clocks lie the lower layer's own calls; plain vLLM, which
  has nothing else between them, shows that time in the same run (`clocks_us`): it is no part of the plug-in.
  `with_clocks` is the figure before.
- `time_to_effect_tokens` is the worst of all swaps, seen by a client: with it counts what had been on its way when
  the PUT was sent, and a client that the machine keeps waiting.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import Report, Row, add_arguments, finish
from vllm_env import vllm_python
from vllm_hook_parts.engines import Engine, engine
from vllm_hook_parts.serving import Serving
from vllm_learning_parts.server import vllm_server

MODEL = "SmolLM2-135M-Instruct"
STREAMS = 8
Measured = list[dict[str, Any]]


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(options)
    options.add_argument("--rounds", type=int, default=15, help="of both engines (default: %(default)s)")
    options.add_argument("--tokens", type=int, default=48, help="a stream and round (default: %(default)s)")
    options.add_argument("--quick", action="store_true", help="a few of everything: shows rows, not figures")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, writes, checks."""
    args = parser().parse_args(arguments)
    if args.quick:
        args.rounds, args.tokens = 2, 8
    elif args.rounds < 9:
        sys.exit("--rounds: a median of fewer than 9 rounds is no figure")
    report = Report("vllm_hook, quick (no figures to quote)" if args.quick else "vllm_hook")
    from sona_stream_adapters.local.weights import pull_model

    model = pull_model(MODEL, progress=lambda line: print(line, file=sys.stderr, flush=True))
    python = vllm_python()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            engine(python, model, plugin=False, folder=folder) as plain,
            engine(python, model, plugin=True, folder=folder) as plugged,
        ):
            ratio_rows(report, *interleaved(plain, plugged, args.rounds, args.tokens))
            progress(report)
            inside_rows(report, plain, plugged, args.rounds, args.tokens)
            progress(report)
            counters = plugged("stats")
            stands(counters)
            if counters["missing_rows"]:
                sys.exit(f"rows were served without their adapters: {counters}")
        key = secrets.token_hex(16)
        log = folder / "serve.log"
        with vllm_server(python, model, name=MODEL, key=key, threads=1, log=log) as base_url:
            serving = Serving(base_url, model=MODEL, key=key)
            serving_rows(report, serving, args.rounds)
            stands(serving.counters())
            serving.close()
    finish(report, args)


def progress(report: Report) -> None:
    """What is known so far: the rest takes minutes."""
    for row in report.rows:
        print(f"{row.id}: {row.value:.4g} {row.unit}", file=sys.stderr, flush=True)


def stands(counters: dict[str, Any]) -> None:
    """A hook that gave up costs nothing: then there are no figures."""
    if counters["disabled"] or counters["mismatch"]:
        raise SystemExit(f"the hook did not work through the run: {counters}")


def interleaved(plain: Engine, plugged: Engine, rounds: int, tokens: int) -> tuple[Measured, Measured, Measured]:
    """(plain, plug-in with adapters and captures, plug-in with nobody bound), a round of each a round."""
    kinds = [
        (plain, {}),
        (plugged, {"key": "large", "capture": True}),
        (plugged, {}),
    ]
    found: list[Measured] = [[], [], []]
    for number in range(rounds + 1):
        for i in (0, 1, 2) if number % 2 else (2, 1, 0):
            which, how = kinds[i]
            one = which("round", streams=STREAMS, tokens=tokens, **how)
            if number:  # the first is for warming up
                found[i].append(one)
    return found[0], found[1], found[2]


def ratio_rows(report: Report, plain: Measured, bound: Measured, idle: Measured) -> None:
    """Rates by the worker's CPU time, round by round."""
    ours, theirs, nobody = ([one["cpu_us_per_token"] for one in kind] for kind in (bound, plain, idle))
    report.measured(
        "tokens_per_s_ratio",
        [b / a for a, b in zip(ours, theirs, strict=True)],
        "ratio",
        goal=0.97,
        direction=">=",
        compared={
            "plain_cpu_us_per_token": statistics.median(theirs),
            "plugin_cpu_us_per_token": statistics.median(ours),
            "nobody_bound_ratio": statistics.median(b / a for a, b in zip(nobody, theirs, strict=True)),
            "remark": f"plain vLLM over plug-in + {STREAMS} adapters + capture; captures are not asked for here",
        },
    )


def inside_rows(report: Report, plain: Engine, plugged: Engine, rounds: int, tokens: int) -> None:
    """What clocks around the wraps say, less what the same clocks say of plain vLLM."""
    one, all_ = {"streams": 1}, {"streams": STREAMS}
    kinds: dict[str, tuple[Engine, dict[str, Any]]] = {
        "clocks_1": (plain, one),
        "nothing_1": (plugged, one),
        "captured_1": (plugged, {**one, "capture": True}),
        "clocks": (plain, all_),
        "uncaptured": (plugged, {**all_, "key": "small"}),
        "micro": (plugged, {**all_, "key": "micro", "capture": True}),
        "small": (plugged, {**all_, "key": "small", "capture": True}),
        "capped": (plugged, {**all_, "key": "large", "capture": True}),
    }
    found: dict[str, Measured] = {name: [] for name in kinds}
    for number in range(rounds + 1):
        for name in kinds if number % 2 else reversed(kinds):
            which, how = kinds[name]
            told = which("round", tokens=tokens, **how)
            if number:
                found[name].append(told)
    clocks = {suffix: middle(found[f"clocks{suffix}"], "wrap_us") for suffix in ("", "_1")}
    share = {
        name: [(told["wrap_us"] - clocks["_1"]) / told["step_us"] for told in found[name]]
        for name in ("captured_1", "nothing_1")
    }
    report.measured(
        "wrap_share_of_step",
        share["captured_1"],
        "share",
        goal=0.003,
        compared={
            "not_captured": statistics.median(share["nothing_1"]),
            "step_us": middle(found["captured_1"], "step_us"),
            "wrap_us": middle(found["captured_1"], "wrap_us") - clocks["_1"],
            "wrap_us_not_captured": middle(found["nothing_1"], "wrap_us") - clocks["_1"],
            "clocks_us": clocks["_1"],
            "remark": "nobody bound, one stream, captured; what the clocks themselves take is off",
        },
    )
    report.measured(
        "wrap_us_8_bound",
        [told["wrap_us"] - clocks[""] for told in found["capped"]],
        "us",
        goal=100.0,
        compared={
            "with_clocks": middle(found["capped"], "wrap_us"),
            "clocks_us": clocks[""],
            "below_the_cap": middle(found["small"], "wrap_us") - clocks[""],
            "rank_2": middle(found["micro"], "wrap_us") - clocks[""],
            "not_captured": middle(found["uncaptured"], "wrap_us") - clocks[""],
            "mean": middle(found["capped"], "wrap_us_mean") - clocks[""],
            "step_us": middle(found["capped"], "step_us"),
            "remark": f"{STREAMS} requests, {STREAMS} different adapters of rank 2 + 8 that are cut to the norm "
            "cap, all captured",
        },
    )
    lessons = [plugged("lesson") for _ in range(rounds + 1)][1:]
    report.measured(
        "gradient_steps_64_tokens",
        [one["gradient_steps"] for one in lessons],
        "steps",
        goal=2.0,
        compared={
            "again": statistics.median(one["again_steps"] for one in lessons),
            "fetch": statistics.median(one["fetch_steps"] for one in lessons),
            "step_ms": statistics.median(one["step_ms"] for one in lessons),
            "remark": f"of a batch of {STREAMS}; 64 tokens never seen before, again: their second gradient, "
            "fetch: their log-probabilities",
        },
    )


def middle(found: Measured, name: str) -> float:
    """The median over rounds."""
    return statistics.median(one[name] for one in found)


def serving_rows(report: Report, serving: Serving, rounds: int) -> None:
    """A real server, over HTTP."""
    serving.put_ms(3)
    idle, busy = serving.put_ms(4 * rounds), serving.put_ms_while_streaming(2 * rounds)
    report.measured(
        "adapter_put_ms",
        idle,
        "ms",
        goal=5.0,
        compared={
            "p95": float(sorted(idle)[int(0.95 * len(idle))]),
            "while_streaming": statistics.median(busy),
            "remark": "p50, rank 10; while an answer streams a PUT waits for the step that runs",
        },
    )
    effects = [serving.tokens_to_effect(after) for after in range(5, 5 + min(rounds, 15))]
    seen = [float(one) for one in effects if one is not None]
    missed = len(seen) < len(effects)
    report.add(
        Row(
            "time_to_effect_tokens",
            None if missed else max(seen),
            "tokens",
            (min(seen), max(seen)) if seen else None,
            len(effects),
            {
                "median": statistics.median(seen) if seen else None,
                "remark": "the worst swap: number of the first token that a PUT during the stream changed, less "
                "those that had come when it was sent; a client that the machine keeps waiting sees more",
            },
            goal=2.0,
        )
    )


if __name__ == "__main__":
    main()
