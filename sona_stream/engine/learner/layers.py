"""Steps of the pairs inside the model, where a host has them (`LayeredHost`): research.

What a layer's output does to the policy is known only through its gradient, so the natural steps of the last pair
are out of reach: both factors take Adam's steps (Kingma & Ba 2015, https://arxiv.org/abs/1412.6980), relative to
what the layer puts out. The first column of B, whose row of A is constant, moves at once; everything else in
proportion to ``freedom``, as in `optimiser`. Several layers add up along the residual stream, so each moves by its
share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from ...lora import F32, LoraGradient, LowRank

__all__ = ["LayerSteps", "Unit", "layer_differences", "layer_steps", "layers_moved", "layers_scaled"]

LayerSteps = Mapping[int, tuple[F32, F32]]
"""layer -> a step of A (r, d) and of B (d, r), to be subtracted"""

Unit = Callable[[F32, Mapping[str, F32], str], tuple[F32, Mapping[str, F32]]]
"""A gradient, moments and a prefix of their names -> the unit step and the moments after it."""


def layer_steps(
    gradient: LoraGradient, moments: Mapping[str, F32], unit: Unit, *, rate: float, freedom: float
) -> tuple[LayerSteps, Mapping[str, F32]]:
    """One step of every layer, and all moments after it."""
    tokens, steps = np.float32(max(gradient.tokens, 1)), {}
    share = rate / math.sqrt(max(len(gradient.layers), 1))
    for layer, (of_A, of_B) in gradient.layers.items():
        A, moments = unit(of_A / tokens, moments, f"layers.{layer}.A.")
        B, moments = unit(of_B / tokens, moments, f"layers.{layer}.B.")
        B[:, 1:] *= freedom
        steps[layer] = (_f32(freedom * share / math.sqrt(of_A.shape[1]) * A), _f32(share * B))
    return steps, moments


def layers_moved(layers: Mapping[int, LowRank], steps: LayerSteps, scale: float) -> dict[int, LowRank]:
    """Each pair - scale * its step; those without a step stay."""
    by = np.float32(scale)
    return {
        layer: LowRank(pair.lora_A - by * steps[layer][0], pair.lora_B - by * steps[layer][1], pair.scaling)
        if layer in steps
        else pair
        for layer, pair in layers.items()
    }


def layer_differences(start: Mapping[int, LowRank], end: Mapping[int, LowRank]) -> LayerSteps:
    """What leads from `start` to `end`, of the layers that both have."""
    return {
        layer: (start[layer].lora_A - pair.lora_A, start[layer].lora_B - pair.lora_B)
        for layer, pair in end.items()
        if layer in start
    }


def layers_scaled(layers: Mapping[int, LowRank], share: float) -> dict[int, LowRank]:
    """Every pair's effect times `share`."""
    by = np.float32(share)
    return {layer: LowRank(pair.lora_A, by * pair.lora_B, pair.scaling) for layer, pair in layers.items()}


def _f32(values: F32) -> F32:
    return values.astype(np.float32)
