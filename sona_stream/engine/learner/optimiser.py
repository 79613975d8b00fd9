"""How far, and which way, a gradient moves the micro pair.

**B** takes natural-gradient steps (Amari 1998, https://doi.org/10.1162/089976698300017746), in the metric of the
unadapted policy: M = E[g g^T] says what a change of the hidden states costs in nats. A few directions of M are
loud: nearly every answer's gradient lies along them, whatever it was rated for. A step that measures all directions
by the same yardstick (plain, or Adam's, which looks at coordinates) follows them, and with them the noise of the
ratings. A part of the largest eigenvalue is added to M: directions quieter than that are not worth more.

**A** decides on which tokens B acts. Its first row is nearly constant on answers at birth (see `initial`), so that
B's first column is a bias, the part that needs the fewest ratings. The other columns, and every step of A (Adam,
Kingma & Ba 2015, https://arxiv.org/abs/1412.6980, ``rate`` relative to A h of order 1), move in proportion to
``freedom``: how far answers not seen support what was learned so far.

**The base pair** takes the same steps in the background, measured by its own inputs as well: what its rows make of
the hidden states is whitened, so that one stride fits every column and every split into factors (Kronecker-factored
curvature: Martens & Grosse 2015, https://arxiv.org/abs/1503.05671).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ...lora import F32, Curvature, LoraGradient, LoraWeights, LowRank, Spectrum
from .layers import LayerSteps, layer_differences, layer_steps, layers_moved, layers_scaled

__all__ = [
    "RIDGE",
    "Direction",
    "Moments",
    "Pace",
    "base_moved",
    "base_step_of",
    "contracted",
    "micro_cleared",
    "moved",
    "shifted",
    "softened",
    "step_of",
    "whitening",
]

Moments = Mapping[str, F32]
"""Optimiser state by name, as an `AdapterRecord` keeps it: m and v of A, the count, h's rms; beside it what
`evidence` keeps."""

_BETA1, _BETA2, _EPSILON = 0.9, 0.99, 1e-12
_ADAM, _BASE = ("count", "m_A", "v_A"), "base_"
F64 = NDArray[np.float64]

RIDGE = 0.03
_DAMPING = 0.1


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Pace:
    """What steps are measured by. ``stride`` multiplies the natural gradient of B: 1 / anchor would be the whole
    way to the optimum of a policy that is linear in B. One for all columns of B, or one each.
    """

    curvature: Curvature
    stride: float | F64
    rate: float
    freedom: float


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """A full step of one pair, to be subtracted: (r, d) and (d, r); with the micro pair's, those of the layers."""

    lora_A: F32
    lora_B: F32
    layers: LayerSteps = dataclasses.field(default_factory=dict)


def step_of(gradient: LoraGradient, moments: Moments, pace: Pace) -> tuple[Direction, Moments]:
    """The step for a gradient (mean over tokens is taken here) and the moments after it.

    ``moments["rms"]`` (1,) must be there; everything else starts at zero.
    """
    tokens = np.float32(max(gradient.tokens, 1))
    B = pace.stride * pace.curvature.outputs.solve(gradient.micro_B / tokens, RIDGE)
    B[:, 1:] *= pace.freedom
    unit, after = _adam(gradient.micro_A / tokens, moments)
    rms, d = float(moments["rms"][0]), gradient.micro_A.shape[1]
    A = pace.freedom * pace.rate / (rms * d**0.5) * unit
    layers, after = layer_steps(gradient, after, _adam, rate=pace.rate, freedom=pace.freedom)
    return Direction(A.astype(np.float32), B.astype(np.float32), layers), after


def base_step_of(gradient: LoraGradient, base: LowRank, moments: Moments, pace: Pace) -> tuple[Direction, Moments]:
    """The same for the base pair `base`, whose gradient must be there."""
    if gradient.base_A is None or gradient.base_B is None:
        raise ValueError("the gradient is not of a base pair")
    tokens = np.float32(max(gradient.tokens, 1))
    B = pace.curvature.outputs.solve(gradient.base_B / tokens, RIDGE) @ whitening(base, pace.curvature.inputs)
    B = pace.freedom * pace.stride * B
    unit, after = _adam(gradient.base_A / tokens, moments, _BASE)
    rms, d = float(moments["rms"][0]), gradient.base_A.shape[1]
    A = pace.freedom * pace.rate / (rms * d**0.5) * unit
    return Direction(A.astype(np.float32), B.astype(np.float32)), after


def whitening(pair: LowRank, inputs: Spectrum | None) -> F32:
    """(r, r): (E[(A h)(A h)^T] + a tenth of its mean eigenvalue)^-1; where the states are not known, 1."""
    rank = len(pair.lora_A)
    if inputs is None:
        return np.eye(rank, dtype=np.float32)
    moment = inputs.times(pair.lora_A) @ pair.lora_A.T.astype(np.float64)
    floor = max(_DAMPING * float(np.trace(moment)) / rank, 1e-12)
    return np.asarray(np.linalg.inv(moment + floor * np.eye(rank)), dtype=np.float32)


def softened(pace: Pace, stiffness: F64) -> Pace:
    """For a loss that is by so much steeper than the policy alone: a step must not overshoot what holds it."""
    return dataclasses.replace(pace, stride=pace.stride / (1.0 + pace.stride * stiffness))


def micro_cleared(moments: Moments) -> Moments:
    """Without what is known of the micro pair's own steps: it starts anew."""
    return {name: value for name, value in moments.items() if name not in _ADAM}


def _adam(g: F32, moments: Moments, prefix: str = "") -> tuple[F32, Moments]:
    """Adam's unit step on A (r, d), and all moments after it."""
    names = [prefix + name for name in _ADAM]
    count = float(moments[names[0]][0]) + 1.0 if names[0] in moments else 1.0
    zero = np.zeros_like(g)
    m = _BETA1 * moments.get(names[1], zero) + (1 - _BETA1) * g
    v = _BETA2 * moments.get(names[2], zero) + (1 - _BETA2) * g * g
    unit = (m / (1 - _BETA1**count)) / np.maximum(np.sqrt(v / (1 - _BETA2**count)), _EPSILON)
    kept = dict(zip(names, (np.asarray([count], dtype=np.float32), m, v), strict=True))
    after = {**moments, **{name: value.astype(np.float32) for name, value in kept.items()}}
    return unit, after


def moved(weights: LoraWeights, direction: Direction, scale: float = 1.0) -> LoraWeights:
    """Weights - scale * direction; the base pair stays."""
    micro, by = weights.micro, np.float32(scale)
    pair = LowRank(
        micro.lora_A - by * direction.lora_A, micro.lora_B - by * direction.lora_B, scaling=micro.scaling
    )
    layers = layers_moved(weights.layers, direction.layers, scale)
    return dataclasses.replace(weights, micro=pair, layers=layers)


def base_moved(weights: LoraWeights, direction: Direction, scale: float = 1.0) -> LoraWeights:
    """The same for the base pair, which must be there."""
    base, by = weights.base, np.float32(scale)
    if base is None:
        raise ValueError("there is no base pair to move")
    pair = LowRank(base.lora_A - by * direction.lora_A, base.lora_B - by * direction.lora_B, scaling=base.scaling)
    return dataclasses.replace(weights, base=pair)


def shifted(start: LoraWeights, end: LoraWeights, onto: LoraWeights, scale: float = 1.0) -> LoraWeights:
    """`onto` plus scale * (end - start), factor by factor: a background result on what was learned meanwhile. The
    base pair moves where all three have one.
    """
    layers = layer_differences(start.layers, end.layers)
    out = moved(onto, dataclasses.replace(_difference(start.micro, end.micro), layers=layers), scale)
    if start.base is None or end.base is None or start.base is end.base or out.base is None:
        return out
    return base_moved(out, _difference(start.base, end.base), scale)


def _difference(start: LowRank, end: LowRank) -> Direction:
    return Direction(start.lora_A - end.lora_A, start.lora_B - end.lora_B)


def contracted(weights: LoraWeights, share: float) -> LoraWeights:
    """The whole adapter's effect times `share`."""
    base = None if weights.base is None else _scaled(weights.base, share)
    return LoraWeights(_scaled(weights.micro, share), base, layers_scaled(weights.layers, share))


def _scaled(pair: LowRank, share: float) -> LowRank:
    return LowRank(pair.lora_A, np.float32(share) * pair.lora_B, scaling=pair.scaling)
