"""What the plug-in costs inside vLLM, and how fast it acts: SmolLM2-135M-Instruct in float32 on one core.

    python benchmarks/vllm_hook.py --json OUT [--check] [--quick]

Two engines live side by side, plain vLLM and one with the plug-in, eight adapters and captures; rounds of both are
interleaved, every second one in reverse. CPU time is that of the worker's two methods of a step. The plug-in's own
time of a step is what lies between clocks above and below its wraps. A real `vllm serve` answers the PUTs and the
streams. vLLM's environment is the one that SONA_STREAM_VLLM_ENV names, or is made (see `vllm_env.py`).
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
            inside_rows(report, plugged, args.rounds, args.tokens)
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


def inside_rows(report: Report, plugged: Engine, rounds: int, tokens: int) -> None:
    """What clocks around the wraps say."""
    kinds: dict[str, dict[str, Any]] = {
        "captured": {"streams": 1, "capture": True},
        "nothing": {"streams": 1},
        "capped": {"streams": STREAMS, "key": "large", "capture": True},
        "small": {"streams": STREAMS, "key": "small", "capture": True},
        "uncaptured": {"streams": STREAMS, "key": "small"},
    }
    found: dict[str, Measured] = {name: [] for name in kinds}
    for number in range(rounds + 1):
        for name in kinds if number % 2 else reversed(kinds):
            one = plugged("round", tokens=tokens, **kinds[name])
            if number:
                found[name].append(one)
    share = {name: [one["wrap_us"] / one["step_us"] for one in found[name]] for name in ("captured", "nothing")}
    report.measured(
        "wrap_share_of_step",
        share["captured"],
        "share",
        goal=0.003,
        compared={
            "not_captured": statistics.median(share["nothing"]),
            "step_us": statistics.median(one["step_us"] for one in found["captured"]),
            "wrap_us": statistics.median(one["wrap_us"] for one in found["captured"]),
            "remark": "nobody bound, one stream, captured",
        },
    )
    wrap = {name: [one["wrap_us"] for one in found[name]] for name in ("capped", "small", "uncaptured")}
    report.measured(
        "wrap_us_8_bound",
        wrap["capped"],
        "us",
        goal=100.0,
        compared={
            "below_the_cap": statistics.median(wrap["small"]),
            "not_captured": statistics.median(wrap["uncaptured"]),
            "mean": statistics.median(one["wrap_us_mean"] for one in found["capped"]),
            "step_us": statistics.median(one["step_us"] for one in found["capped"]),
            "remark": f"{STREAMS} requests, {STREAMS} adapters of rank 2 + 8 cut to the norm cap, all captured",
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
    report.add(
        Row(
            "time_to_effect_tokens",
            max(seen) if len(seen) == len(effects) else None,
            "tokens",
            (min(seen), max(seen)) if seen else None,
            len(effects),
            {
                "median": statistics.median(seen) if seen else None,
                "remark": "worst: number of the first token that a PUT during the stream changed, less those "
                "that had come when it was sent",
            },
            goal=2.0,
        )
    )


if __name__ == "__main__":
    main()
