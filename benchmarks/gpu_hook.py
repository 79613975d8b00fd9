"""The plug-in's tensor work on a CUDA device, without vLLM: what it adds to a step of a large model.

    python benchmarks/gpu_hook.py --json OUT

The very functions that run inside vLLM's worker, at hidden sizes 3072 and 4096, vocabularies of 128,256 and 200,064
and batches of 1 to 256, in bfloat16: `adapt` for as many rows as there are, eight adapters of rank 2 + 8 among
them, and the ring's writes. Timed by events around many calls: the longer of the device's time and of the host's,
which stands beside it as `host`. `adapt` alone once more inside a captured CUDA graph, where launches cost nothing
(vLLM calls the hook outside of its graphs: that is what capturing it would save). Beside them the lm_head's own
product, which every step has anyway, and the gradient of 256 tokens.

Without a CUDA device nothing is measured, and it says so. ``--cpu-smoke`` runs every line but the graph's with tiny
sizes on the CPU: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from report import Report, add_arguments, finish

RANK_MICRO, RANK_BASE, ADAPTERS = 2, 8, 8


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    device: str
    dims: tuple[int, ...] = (3072, 4096)
    vocabularies: tuple[int, ...] = (128_256, 200_064)
    batches: tuple[int, ...] = (1, 8, 64, 256)
    rounds: int = 15
    calls: int = 50
    gradient_tokens: int = 256


SMOKE = Plan("cpu", dims=(16,), vocabularies=(64,), batches=(1, 4), rounds=2, calls=2, gradient_tokens=8)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, writes, checks."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(options)
    options.add_argument("--cpu-smoke", action="store_true", help="tiny sizes on the CPU; the figures mean nothing")
    args = options.parse_args(arguments)
    import torch

    if not args.cpu_smoke and not torch.cuda.is_available():
        print("not run: this needs a CUDA device, and there is none here (--cpu-smoke runs its lines on the CPU)")
        sys.exit(2)
    plan = SMOKE if args.cpu_smoke else Plan("cuda")
    report = Report("gpu_hook, smoke test on the CPU (no figures)" if args.cpu_smoke else "gpu_hook")
    if not args.cpu_smoke:
        report.note(f"device: {torch.cuda.get_device_name()}, torch {torch.__version__}")
    for dim in plan.dims:
        with torch.inference_mode():
            for batch in plan.batches:
                wrap_row(report, plan, dim, batch)
        for vocabulary in plan.vocabularies:
            head_rows(report, plan, dim, vocabulary)
    finish(report, args)


def wrap_row(report: Report, plan: Plan, dim: int, batch: int) -> None:
    """`adapt` and the ring's writes of one step."""
    eager = _samples(plan, _step(plan, dim, batch, bounded=True))
    compared: dict[str, Any] = {
        "host": statistics.median(_host_samples(plan, _step(plan, dim, batch, bounded=True))),
        "capped": statistics.median(_samples(plan, _step(plan, dim, batch, bounded=False))),
        "in_graph": None,
        "in_graph_capped": None,
    }
    if plan.device == "cuda":
        for name, bounded in (("in_graph", True), ("in_graph_capped", False)):
            replay = _captured(_step(plan, dim, batch, bounded=bounded, captured=False))
            compared[name] = statistics.median(_samples(plan, replay))
    report.measured(f"wrap_us.d{dim}.b{batch}", eager, "us", compared=compared)


def head_rows(report: Report, plan: Plan, dim: int, vocabulary: int) -> None:
    """The lm_head's own product a batch, and a lesson."""
    import torch

    weight = torch.randn(vocabulary, dim, device=plan.device, dtype=torch.bfloat16) * 0.02
    with torch.inference_mode():
        for batch in plan.batches:
            hidden = torch.randn(batch, dim, device=plan.device, dtype=torch.bfloat16)
            samples = _samples(plan, lambda hidden=hidden: hidden @ weight.T)
            report.measured(f"lm_head_us.d{dim}.v{vocabulary}.b{batch}", samples, "us")
    lesson = _lesson(plan, weight)
    lesson()
    seconds = [_seconds(plan, lesson) for _ in range(plan.rounds)]
    report.measured(
        f"gradient_ms.d{dim}.v{vocabulary}",
        [1e3 * one for one in seconds],
        "ms",
        compared={"tokens": float(plan.gradient_tokens)},
    )


def _step(plan: Plan, dim: int, batch: int, *, bounded: bool, captured: bool = True) -> Callable[[], None]:
    """What the hook does between the model's last layer and the sampler's end, index tensors being cached."""
    import torch

    from sona_stream_adapters.vllm_plugin.adapting import adapt
    from sona_stream_adapters.vllm_plugin.plan import Adapted, Captured
    from sona_stream_adapters.vllm_plugin.ring import CaptureRing
    from sona_stream_adapters.vllm_plugin.staging import States

    many = min(ADAPTERS, batch)
    width = (RANK_MICRO + RANK_BASE) * many
    strangers = torch.ones(batch, width, dtype=torch.bool, device=plan.device)
    for row in range(batch):
        first = (row % many) * (RANK_MICRO + RANK_BASE)
        strangers[row, first : first + RANK_MICRO + RANK_BASE] = False
    adapted = Adapted(
        rows=None,
        count=batch,
        A=torch.randn(width, dim, device=plan.device).T / dim**0.5,
        B=torch.randn(width, dim, device=plan.device) * 0.02,
        strangers=strangers if many > 1 else None,
        bounded=bounded,
    )
    hidden = torch.randn(batch, dim, device=plan.device, dtype=torch.bfloat16)
    ids = torch.zeros(batch, 1, dtype=torch.int32, device=plan.device)
    ring = CaptureRing(4096, dim, torch.bfloat16, plan.device)
    own = Captured(
        rows=None,
        count=batch,
        owners=[],
        requests=torch.arange(batch, device=plan.device),
        drafts=None,
        now=[],
        now_rows=None,
        now_inverse_t=None,
        versions=np.ones(batch, np.int32),
        adapted=True,
        cuttable=not bounded,
    )

    cut = torch.zeros((), dtype=torch.int64, device=plan.device)

    def step() -> None:
        changed, capped = adapt(hidden, adapted, 1.0)
        if capped is not None:
            cut.add_(capped.sum())
        if captured:
            ring.stage(own, ring.reserve(batch), ids, None, States(hidden, changed, capped))

    return step


def _lesson(plan: Plan, weight: Any) -> Callable[[], object]:
    """The gradient of tokens that were never seen before: nothing of it is kept between calls."""
    import torch

    from sona_stream.lora import LoraWeights, LowRank, TokenSignal
    from sona_stream_adapters.head import BaseLogits, Batch, CapturedTokens, DenseHead, Job, Scratch, gradient

    vocabulary, dim = weight.shape
    rng, tokens = np.random.default_rng(0), plan.gradient_tokens

    def pair(rank: int) -> LowRank:
        A = rng.standard_normal((rank, dim)).astype(np.float32) / np.float32(dim**0.5)
        return LowRank(A, (0.02 * rng.standard_normal((dim, rank))).astype(np.float32), 1.0)

    hidden = torch.randn(tokens, dim, device=plan.device, dtype=torch.bfloat16)
    ids = torch.randint(0, vocabulary, (tokens,), device=plan.device)
    captured = CapturedTokens("r", hidden, ids, torch.zeros(tokens, device=plan.device), 0.8)
    advantages = [np.linspace(-1, 1, tokens, dtype=np.float32)]
    signal = TokenSignal(weights=LoraWeights(pair(RANK_MICRO), pair(RANK_BASE)), advantages=advantages, anchor=0.1)
    source, scratch = BaseLogits(DenseHead(weight), max_bytes=0), Scratch()

    def lesson() -> object:
        batch = Batch([captured], device=plan.device, keys=[b"r"])
        return Job(gradient(source, batch, signal, scratch)).run()

    return lesson


def _captured(work: Callable[[], None]) -> Callable[[], None]:
    """As a CUDA graph's replay."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    replay: Callable[[], None] = graph.replay
    return replay


def _samples(plan: Plan, work: Callable[[], object]) -> list[float]:
    """Microseconds a call, a sample a round."""
    for _ in range(3):
        work()
    return [
        1e6 * _seconds(plan, lambda: [work() for _ in range(plan.calls)]) / plan.calls for _ in range(plan.rounds)
    ]


def _host_samples(plan: Plan, work: Callable[[], object]) -> list[float]:
    """Microseconds a call until it returns: what the host spends on launching, the device works on meanwhile."""
    import torch

    samples = []
    for _ in range(plan.rounds + 1):
        began = time.perf_counter()
        for _ in range(plan.calls):
            work()
        samples.append(1e6 * (time.perf_counter() - began) / plan.calls)
        if plan.device == "cuda":
            torch.cuda.synchronize()
    return samples[1:]


def _seconds(plan: Plan, work: Callable[[], object]) -> float:
    """Of the device where there is one: from before the first kernel to after the last."""
    import torch

    if plan.device != "cuda":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


if __name__ == "__main__":
    main()
