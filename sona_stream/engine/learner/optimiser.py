"""Adam (Kingma & Ba 2015, https://arxiv.org/abs/1412.6980) over the micro pair, in units of the hidden state.

``rate`` is relative: with A h of order 1, one step moves each entry of h' by about ``rate`` times the root mean
square of h's entries, whatever the model. So B steps by rate * rms; A steps by rate / (rms * sqrt(d)), which moves
A h by about ``rate`` on an unrelated state and by up to sqrt(d) times that on one that agrees in every sign.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from ...lora import F32, LoraGradient, LoraWeights, LowRank

__all__ = ["Direction", "Moments", "adam", "contracted", "moved", "shifted"]

Moments = Mapping[str, F32]
"""Optimiser state by name, as an `AdapterRecord` keeps it: m and v of both factors, the count, h's rms."""

_BETA1, _BETA2, _EPSILON = 0.9, 0.99, 1e-12


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """A full step of the micro pair, to be subtracted: (r, d) and (d, r)."""

    lora_A: F32
    lora_B: F32


def adam(gradient: LoraGradient, moments: Moments, *, rate: float) -> tuple[Direction, Moments]:
    """The step for a gradient (mean over tokens is taken here) and the moments after it.

    ``moments["rms"]`` (1,) must be there; everything else starts at zero.
    """
    tokens = max(gradient.tokens, 1)
    count = float(moments["count"][0]) + 1.0 if "count" in moments else 1.0
    rms, d = float(moments["rms"][0]), gradient.micro_A.shape[1]
    after: dict[str, F32] = {"rms": moments["rms"], "count": np.asarray([count], dtype=np.float32)}
    steps: dict[str, F32] = {}
    units = {"A": rate / (rms * d**0.5), "B": rate * rms}
    for name, summed in (("A", gradient.micro_A), ("B", gradient.micro_B)):
        g = np.asarray(summed, dtype=np.float32) / np.float32(tokens)
        zero = np.zeros_like(g)
        m = _BETA1 * moments.get(f"m_{name}", zero) + (1 - _BETA1) * g
        v = _BETA2 * moments.get(f"v_{name}", zero) + (1 - _BETA2) * g * g
        root = np.sqrt(v / (1 - _BETA2**count))
        unit = (m / (1 - _BETA1**count)) / np.maximum(root, _EPSILON)
        after[f"m_{name}"], after[f"v_{name}"] = m.astype(np.float32), v.astype(np.float32)
        steps[name] = (units[name] * unit).astype(np.float32)
    return Direction(steps["A"], steps["B"]), after


def moved(weights: LoraWeights, direction: Direction, scale: float = 1.0) -> LoraWeights:
    """Weights - scale * direction; the base pair stays."""
    micro, by = weights.micro, np.float32(scale)
    pair = LowRank(
        micro.lora_A - by * direction.lora_A, micro.lora_B - by * direction.lora_B, scaling=micro.scaling
    )
    return dataclasses.replace(weights, micro=pair)


def shifted(start: LoraWeights, end: LoraWeights, onto: LoraWeights, scale: float = 1.0) -> LoraWeights:
    """`onto` plus scale * (end - start), factor by factor: a background result on what was learned meanwhile."""
    by = Direction(
        start.micro.lora_A - end.micro.lora_A,
        start.micro.lora_B - end.micro.lora_B,
    )
    return moved(onto, by, scale)


def contracted(weights: LoraWeights, share: float) -> LoraWeights:
    """The micro pair's effect times `share`; the base pair stays."""
    micro = weights.micro
    pair = LowRank(micro.lora_A, np.float32(share) * micro.lora_B, scaling=micro.scaling)
    return dataclasses.replace(weights, micro=pair)
