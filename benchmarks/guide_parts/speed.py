"""Rows about the micro-LoRA's speed: per vector, in batches, by rank, compiled and not, per inference."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
from report import Report, Row

from sona_stream import kernels
from sona_stream.engine import SonaConfig, SonaEngine

from .inputs import ATTENTION, DIM, F32, trained, units
from .plan import Run, compared
from .rounds import Block, block_of, interleave, middle, original_block, spread

__all__ = ["add_rows"]

US, MS = 1e6, 1e3
RANK = 2


def add_rows(report: Report, run: Run) -> None:
    """`micro_lora_us` to `overhead_ms.edge`."""
    _one_vector(report, run)
    _batches(report, run)
    _ranks_and_simd(report, run)
    _inferences(report, run)


def _timed(blocks: dict[str, Block], run: Run) -> dict[str, list[float]]:
    return interleave(blocks, rounds=run.effort.rounds, block_s=run.effort.block_s)


def _factors() -> tuple[F32, F32]:
    """A (r, d) and B transposed (r, d) for the bare kernel and the numpy expression."""
    random = np.random.default_rng(3)
    return units(RANK, DIM, random), np.float32(0.01) * units(RANK, DIM, random)


def _copy(floats: int) -> Block:
    """Moves ``floats`` float32 in all: half of them read, half written."""
    source = np.ones(floats // 2, np.float32)
    target = np.empty_like(source)
    return block_of(lambda _: np.copyto(target, source), [None])


def _floor(samples: dict[str, list[float]]) -> float:
    """Microseconds that memcpy needs to move as many bytes, its call left out."""
    return max((middle(samples["copy"]) or 0) - (middle(samples["copy nothing"]) or 0), 1e-9) * US


def _one_vector(report: Report, run: Run) -> None:
    engine = trained(SonaConfig.realtime(DIM))
    A, Bt = _factors()
    inputs = list(units(64, DIM, np.random.default_rng(1)))
    row_into = kernels.load(compiled=True).lora_row_into
    out = np.empty(DIM, np.float32)
    blocks: dict[str, Block] = {
        "engine": block_of(engine.apply_micro_lora, inputs),
        "kernel": block_of(lambda x: row_into(x, A, Bt, out), inputs),
        "numpy": block_of(lambda x: x + (A @ x) @ Bt, inputs),
        "copy": _copy((2 + 2 * RANK) * DIM),
        "copy nothing": _copy(2),
    }
    if run.original:
        run.original.ask("make", name="realtime", profile="realtime", change={})
        blocks["original"] = original_block(run.original, "micro", name="realtime")
    samples = _timed(blocks, run)
    floor, numpy_us = _floor(samples), (middle(samples["numpy"]) or 0) * US
    original_s = middle(samples.get("original"))
    for id, name, goal in (("micro_lora_us", "engine", 3.5), ("kernel_into_out_us", "kernel", 2.5)):
        values = [s * US for s in samples[name]]
        value = middle(values) or 0
        versus = compared(
            value, guide=1e6 / 2200, original=original_s and original_s * US,
            numpy=numpy_us, ratio_to_numpy=numpy_us / value, floor=floor, times_floor=value / floor,
        )  # fmt: skip
        report.measured(id, values, "us", goal=goal, compared=versus)
    rates = [1 / s for s in samples["engine"]]
    versus = compared(middle(rates), guide=2200, original=original_s and 1 / original_s, more_is_better=True)
    report.measured("micro_lora_ops_per_s", rates, "1/s", goal=2200, direction=">=", compared=versus)


def _batches(report: Report, run: Run) -> None:
    engine = trained(SonaConfig.batch(DIM))
    A, Bt = _factors()
    rows = units(128, DIM, np.random.default_rng(2))
    blocks: dict[str, Block] = {f"{n}": block_of(engine.apply_micro_lora, [rows[:n]]) for n in (1, 8, 32, 128)}
    blocks["numpy"] = block_of(lambda X: X + (X @ A.T) @ Bt, [rows[:32]])
    blocks["copy"], blocks["copy nothing"] = _copy((2 * 32 + 2 * RANK) * DIM), _copy(2)
    if run.original:
        run.original.ask("make", name="batch", profile="batch", change={})
        blocks["original"] = original_block(run.original, "micro", name="batch")
    samples = _timed(blocks, run)
    floor, numpy_us = _floor(samples) / 32, (middle(samples["numpy"]) or 0) / 32 * US
    original_us = middle(samples.get("original"), US)
    values = [s / 32 * US for s in samples["32"]]
    value = middle(values) or 0
    versus = compared(
        value, guide=14_000 / 32, original=original_us,
        numpy=numpy_us, ratio_to_numpy=numpy_us / value, floor=floor, times_floor=value / floor,
    )  # fmt: skip
    report.measured("micro_lora_batch32_us_per_row", values, "us", goal=1.5, compared=versus)
    values = [s * MS for s in samples["32"]]
    original_ms = original_us and original_us * 32 / 1e3
    report.measured("batch32_ms", values, "ms", compared=compared(middle(values), guide=14.0, original=original_ms))
    for n in (1, 8, 128):
        values = [s / n * US for s in samples[f"{n}"]]
        remark = "the guide calls 32 the optimal batch size; see micro_lora_batch32_us_per_row"
        report.measured(
            f"micro_lora_us_per_row.{n}", values, "us", compared={"batch_of_32": value, "remark": remark}
        )


def _ranks_and_simd(report: Report, run: Run) -> None:
    def engine(rank: int, simd: bool) -> SonaEngine:
        return trained(dataclasses.replace(SonaConfig.batch(DIM), micro_lora_rank=rank, enable_simd=simd))

    inputs = list(units(64, DIM, np.random.default_rng(1)))
    cases = {"2": (2, True), "1": (1, True), "2 off": (2, False)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        engines = {name: engine(*case) for name, case in cases.items()}
    blocks = {name: block_of(each.apply_micro_lora, inputs) for name, each in engines.items()}
    if run.original:
        for name, (rank, simd) in cases.items():
            run.original.ask("make", name=name, profile="batch", change={"microLoraRank": rank, "enableSimd": simd})
            blocks[f"original {name}"] = original_block(run.original, "micro", name=name)
    samples = _timed(blocks, run)

    def quotients(above: str, below: str) -> list[float]:
        if above not in samples:
            return []
        return [a / b for a, b in zip(samples[above], samples[below], strict=True)]

    ratios = quotients("2", "1")
    theirs = middle(quotients("original 2", "original 1"))
    remark = "time of rank 2 over rank 1; the guide says that rank 2 is faster, though it does twice the work"
    versus = {"guide": "below 1", "original": theirs, "remark": remark}
    report.measured("rank2_over_rank1", ratios, "x", compared=versus)
    gains = [100 * (q - 1) for q in quotients("2 off", "2")]
    theirs = middle([100 * (q - 1) for q in quotients("original 2 off", "original 2")])
    remark = (
        "gain of enable_simd over its opposite (here numpy with BLAS, which is vectorised as well); "
        "in the original the switch is wired to nothing"
    )
    versus = {"guide": 10.0, "original": theirs, "remark": remark}
    report.measured("simd_speedup_pct", gains, "%", compared=versus)


def _inference(engine: SonaEngine, query: F32, layers: int = 32) -> None:
    """The guide's "Basic LLM Enhancement", the model's own layers left out."""
    trajectory = engine.begin_trajectory(query)
    hidden = query
    for _ in range(layers):
        hidden = engine.apply_micro_lora(hidden)
    engine.add_trajectory_step(trajectory, hidden, ATTENTION, 0.8)
    engine.end_trajectory(trajectory, 0.8)
    engine.tick()


def _inferences(report: Report, run: Run) -> None:
    inputs = list(units(64, DIM, np.random.default_rng(4)))
    profiles = {"batch": SonaConfig.batch(DIM), "research": SonaConfig.research(DIM), "edge": SonaConfig.edge(DIM)}
    blocks: dict[str, Block] = {}
    for name, config in profiles.items():
        engine = trained(config)
        blocks[name] = block_of(lambda x, engine=engine: _inference(engine, x), inputs)
        if run.original:
            run.original.ask("make", name=name, profile=name, change={})
            blocks[f"original {name}"] = original_block(run.original, "inference", name=name, layers=32)
    samples = _timed(blocks, run)
    rates = [1 / s for s in samples["batch"]]
    theirs = middle(samples.get("original batch"))
    remark = "begin, 32 x apply, step, end (which learns), tick; the model's own layers left out"
    versus = compared(middle(rates), guide=50, original=theirs and 1 / theirs, more_is_better=True, remark=remark)
    report.measured("inferences_32_layers_per_s", rates, "1/s", goal=2000, direction=">=", compared=versus)
    for name, guide in (("research", 25.0), ("edge", 20.0)):
        values = [s * MS for s in samples[name]]
        versus = compared(middle(values), guide=guide, original=middle(samples.get(f"original {name}"), MS))
        row = Row(f"overhead_ms.{name}", middle(values), "ms", spread(values), len(values), versus, guide)
        report.add(row)
