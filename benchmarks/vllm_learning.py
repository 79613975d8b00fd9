"""A model inside `vllm serve` learns from one tenant's ratings; another tenant's answers stay what they were.

    python benchmarks/vllm_learning.py --json OUT [--quick] [--check] [--threads N]

SmolLM2-135M-Instruct in a real `vllm serve` with the plug-in, a real `sona-stream serve` in front; the `openai`
client streams. Preference, questions, reward and the 200 ratings are those of `examples/live_adaptation.py`, where
they are explained. A seed has two fresh tenants, A and its control (the same program's ratings, permuted across
requests), and all seeds share tenant B, which teaches nothing: its greedy answers, one request at a time from an
empty prefix cache, are compared before and after.

Each seed is kept beside OUT as soon as it is measured: a run that was cut off goes on with the next one. vLLM's
virtual environment is made by `.ci/vllm-env` where there is none.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import live_adaptation as live
from report import Report, add_arguments, finish
from served import served
from vllm_env import vllm_python
from vllm_learning_parts.kept import Seed, kept_file, load, save, state_of_code
from vllm_learning_parts.server import forget_prefixes, vllm_server
from vllm_learning_parts.tenants import Bystander, Streaming
from vllm_learning_parts.verdict import rows, samples

from sona_stream.config.keys import hash_key

SEEDS = 5


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(options)
    options.add_argument("--quick", action="store_true", help="one seed instead of five")
    cores = os.cpu_count() or 1
    options.add_argument(
        "--threads", type=int, default=max(1, cores - 1), help="of vLLM's worker (default: %(default)s)"
    )
    options.add_argument("--log", type=Path, help="where vLLM writes (default: a file that goes away)")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is not kept yet, prints, writes, checks."""
    args = parser().parse_args(arguments)
    numbers = range(1 if args.quick else SEEDS)
    code, seeds = state_of_code(), {}
    for number in numbers:
        known = load(kept_file(args.json, number), code) if args.json else None
        if known is not None:
            print(f"seed {number}: kept in {kept_file(args.json, number)}", file=sys.stderr)
            seeds[number] = known
    left = [number for number in numbers if number not in seeds]
    if left:
        with both_servers(left, args) as (vllm, proxy, keys):
            code = state_of_code()  # vLLM's environment may have been made just now
            for number in left:
                seeds[number] = asyncio.run(measure(vllm, proxy, keys[number], keys["B"], number))
                if args.json:
                    save(kept_file(args.json, number), seeds[number], code)
    report = Report("vllm_learning, quick" if args.quick else "vllm_learning")
    rows(report, [seeds[number] for number in numbers])
    for line in samples(seeds[0]):
        report.note(line)
    finish(report, args)


@contextmanager
def both_servers(numbers: Sequence[int], args: argparse.Namespace) -> Iterator[tuple[str, str, dict[Any, Any]]]:
    """Yields vLLM's address, the proxy's, and keys: of each seed (A, control, admin), and "B"'s."""
    from sona_stream_adapters.local.weights import pull_model

    model = pull_model(live.MODEL, progress=lambda line: print(line, file=sys.stderr, flush=True))
    control = secrets.token_hex(24)
    with tempfile.TemporaryDirectory() as folder:
        log = args.log or Path(folder, "vllm.log")
        with vllm_server(vllm_python(), model, name=live.MODEL, key=control, threads=args.threads, log=log) as vllm:
            text, keys = config(numbers, f"{vllm}/v1", control)
            with served(text) as proxy:
                yield vllm, proxy, keys


def config(numbers: Sequence[int], api_base: str, control: str) -> tuple[str, dict[Any, Any]]:
    """The live example's own file with vLLM in the place of the local model, and one more tenant."""
    text, pairs = live.config_for(len(numbers))
    settings = yaml.safe_load(text)
    params = {
        "model": f"vllm/{live.MODEL}",
        "api_base": api_base,
        "control_key": control,
        "timeout": 600,
        "stream_timeout": 600,
    }
    settings["model_list"] = [{"model_name": live.MODEL, "litellm_params": params}]
    own = f"sk-{secrets.token_hex(16)}"
    settings["sona"]["keys"].append({"key": hash_key(own), "tenant": "b", "roles": ["use"]})
    return yaml.safe_dump(settings), {**dict(zip(numbers, pairs, strict=True)), "B": own}


async def measure(vllm: str, proxy: str, keys: tuple[str, str, str], key_b: str, number: int) -> Seed:
    """One seed: B looks, A is measured, A and its control teach, all is learned, both are measured, B looks."""
    key_a, key_control, admin = keys
    student, placebo, bystander = Streaming(proxy, key_a), Streaming(proxy, key_control), Bystander(proxy, key_b)
    draw, began = 10_000 * number, time.monotonic()

    def say(what: str) -> None:
        print(f"seed {number}, {time.monotonic() - began:4.0f} s: {what}", file=sys.stderr, flush=True)

    async with student, placebo, bystander:
        forget_prefixes(vllm)
        looked = await bystander.look()
        before = await student.measure(draw, at_once=2 * live.AT_ONCE)
        say(f"mean reward {live.mean_reward(before):.2f} before; {live.FEEDBACKS} ratings for each of two tenants")
        await asyncio.gather(student.teach(draw + 1000, permuted=False), placebo.teach(draw + 2000, permuted=True))
        say("all rated; waiting until all is learned")
        await live.settled(proxy, admin)
        say("learned; measuring both tenants on the unseen questions")
        after, shuffled = await asyncio.gather(
            student.measure(draw + 3000, at_once=live.AT_ONCE), placebo.measure(draw + 4000, at_once=live.AT_ONCE)
        )
        say(f"mean reward {live.mean_reward(after):.2f} after, {live.mean_reward(shuffled):.2f} in the control")
        forget_prefixes(vllm)
        again = await bystander.look()
        say("tenant B has looked again")
    outcome = live.Outcome(before, after, shuffled)
    return Seed(outcome, (looked, again), student.adapter, student.given, time.monotonic() - began)


if __name__ == "__main__":
    main()
