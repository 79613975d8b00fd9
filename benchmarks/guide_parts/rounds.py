"""Timing in interleaved rounds: whatever disturbs the machine disturbs ours and the reference alike."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from original import Original

__all__ = ["Block", "block_of", "calls_for", "interleave", "middle", "original_block", "spread"]

Block = Callable[[int], float]
"""calls -> seconds that all of them took"""


def block_of(call: Callable[[Any], Any], inputs: Sequence[Any]) -> Block:
    """A block that calls ``call`` on the inputs in turn; the loop itself costs about 15 ns a call."""

    def block(calls: int) -> float:
        turn = itertools.islice(itertools.cycle(inputs), calls)
        began = time.perf_counter()
        for x in turn:
            call(x)
        return time.perf_counter() - began

    return block


def original_block(original: Original, op: str, **options: Any) -> Block:
    """A block that the original's own process times."""

    def block(calls: int) -> float:
        seconds: float = original.ask(op, n=calls, **options)["seconds"]
        return seconds

    return block


def calls_for(block: Block, seconds: float) -> int:
    """How many calls make a block of about this length; this is the warm-up as well."""
    calls = 1
    while (took := block(calls)) < seconds / 4 and calls < 1_000_000:
        calls *= 2
    return max(1, round(calls * seconds / took)) if took > 0 else calls


def interleave(blocks: Mapping[str, Block], *, rounds: int, block_s: float) -> dict[str, list[float]]:
    """Seconds a call, ``rounds`` samples by name. Every second round runs in the reverse order."""
    calls = {name: calls_for(block, block_s) for name, block in blocks.items()}
    samples: dict[str, list[float]] = {name: [] for name in blocks}
    names = list(blocks)
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            samples[name].append(blocks[name](calls[name]) / calls[name])
    return samples


def middle(samples: Sequence[float] | None, scale: float = 1.0) -> float | None:
    """Median times scale; None without samples."""
    return statistics.median(samples) * scale if samples else None


def spread(values: Sequence[float]) -> tuple[float, float]:
    """(least, greatest)"""
    return min(values), max(values)
