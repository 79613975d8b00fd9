"""`sona-stream bench`: a quick look at speed. The careful measurements are the scripts in `benchmarks/`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import click
import numpy as np

from .connection import Connection

__all__ = ["bench"]


@click.command()
@click.option("--base-url", help="Measure this running server instead of the kernels.")
@click.option("--api-key", envvar="SONA_API_KEY", help="Key of the server; default: SONA_API_KEY.")
@click.option("--model", default="sona/auto", show_default=True)
@click.option("--requests", default=16, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--concurrency", default=4, show_default=True, type=click.IntRange(1, 256))
@click.option("--max-tokens", default=32, show_default=True, type=click.IntRange(min=1))
@click.option("--hidden-dim", default=3072, show_default=True, type=click.IntRange(1, 65536))
def bench(
    base_url: str | None,
    api_key: str | None,
    model: str,
    requests: int,
    concurrency: int,
    max_tokens: int,
    hidden_dim: int,
) -> None:
    """Measure the kernels here, or a running server."""
    if base_url is None:
        _kernels(hidden_dim)
    else:
        _server(Connection(base_url, api_key), model, requests, concurrency, max_tokens)


def _kernels(dim: int) -> None:
    from ..engine import SonaConfig, SonaEngine

    rng = np.random.default_rng(0)
    x, batch = rng.standard_normal(dim, np.float32), rng.standard_normal((32, dim), np.float32)
    lora_A, lora_B = rng.standard_normal((2, dim), np.float32), rng.standard_normal((dim, 2), np.float32)
    compiled = SonaEngine.with_config(SonaConfig(hidden_dim=dim, micro_lora_rank=2, warn=False))
    plain = SonaEngine.with_config(SonaConfig(hidden_dim=dim, micro_lora_rank=2, enable_simd=False, warn=False))
    rows = (
        ("micro-LoRA, one vector", _us(lambda: compiled.apply_micro_lora(x))),
        ("micro-LoRA, a row of a batch of 32", _us(lambda: compiled.apply_micro_lora(batch)) / 32),
        ("the same without compiled kernels", _us(lambda: plain.apply_micro_lora(x))),
        ("numpy expression x + B @ (A @ x)", _us(lambda: x + lora_B @ (lora_A @ x))),
    )
    click.echo(f"hidden_dim {dim}, rank 2; median microseconds a call")
    for name, value in rows:
        click.echo(f"  {name:<36} {value:8.2f}")


def _us(call: Callable[[], object], rounds: int = 15, calls: int = 500) -> float:
    for _ in range(calls):
        call()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - began) / calls)
    return statistics.median(times) * 1e6


def _server(connection: Connection, model: str, requests: int, concurrency: int, max_tokens: int) -> None:
    def one(number: int) -> tuple[float, float, int]:
        question = f"Name {number % 7 + 2} things that float on water."
        body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": max_tokens}
        began = time.perf_counter()
        first, pieces = 0.0, 0
        with connection.stream_chat(body) as answer:
            for _ in answer:
                first = first or time.perf_counter() - began
                pieces += 1
        return first, time.perf_counter() - began, pieces

    began = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        results = list(pool.map(one, range(requests)))
    took = time.perf_counter() - began
    firsts, totals, pieces = zip(*results, strict=True)
    click.echo(f"{requests} requests, {concurrency} at a time, up to {max_tokens} tokens each")
    click.echo(f"  first token     {statistics.median(firsts) * 1e3:8.1f} ms (median)")
    click.echo(f"  whole answer    {statistics.median(totals) * 1e3:8.1f} ms (median)")
    click.echo(f"  stream events   {sum(pieces) / took:8.1f} a second in sum")
