"""Elastic weight consolidation: steps for today's lessons pay for what they change on earlier domains.

    (ewc_lambda / 1000) * sum_k  mean over R_k of  1/2 Var_{p*}(W (M - M*_k) h)

after Kirkpatrick et al. 2017 (https://arxiv.org/abs/1612.00796), in the space of functions: a consolidation rotates
the factors, and a penalty on their entries would pull at numbers that no longer mean the same. Two forms:

- ``function``: as above. The host computes it on the reservoirs' answers (`RetainingHost`).
- ``factored``: the cheap one, 1/2 tr(G_k D C_k D^T) with D = M - M*_k, G_k and C_k the second moments of the
  policy's gradients and of its states on R_k as low rank + diagonal (a Kronecker-factored Laplace approximation:
  Ritter et al. 2018, https://arxiv.org/abs/1805.07810). It asks the host nothing and is what is used where a host
  cannot say. A plain diagonal over the entries of A and B is not offered: it changes with every consolidation.

A domain that is being taught is not held where it was: its own lessons say where it should go.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...lora import F32, Capture, LoraGradient, LoraWeights, LowRank, Spectrum
from ...protocols import RetainingHost
from .domains import Domain
from .optimiser import RIDGE

__all__ = ["Elastic", "factored_penalty", "with_penalty"]

F64 = NDArray[np.float64]

_SCALE = 1000.0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Elastic:
    """What holds one key's adapter while other domains than these are taught."""

    strength: float
    """`ewc_lambda`"""
    domains: Sequence[Domain]
    tokens: int
    """of each domain's reservoir, a step"""
    top_k: int | None
    factored: bool = False
    elsewhere: Domain | None = None
    """What nobody taught; in the cheap form, always"""
    pull: float = 0.0
    """Weight of its penalty"""

    @property
    def weight(self) -> float:
        """Of one domain's penalty, against a token's loss."""
        return self.strength / _SCALE

    def _held(self) -> list[tuple[Domain, float, bool]]:
        """With the weight of each, and whether its penalty takes the cheap form."""
        taught = [(one, self.weight, self.factored) for one in self.domains]
        return taught if self.elsewhere is None else [*taught, (self.elsewhere, self.pull, True)]

    def stiffness(self, pair: LowRank, metric: Spectrum, whitening: F32 | None = None) -> F64:
        """How much steeper than the policy itself the loss becomes for each column of this pair's B, at most. A
        step is divided by one plus its stride times this.

        With S the sum over domains of E[(A h)(A h)^T], each times how loud it is in the steps' `metric`, these are
        the sums |S_j1| + ... + |S_jr|, (r,), whose diagonal matrix is nowhere less than S (Gershgorin); for steps
        in the metric of `whitening`, too, its trace, ().
        """
        A = pair.lora_A.astype(np.float64)
        squares = np.zeros((len(A), len(A)))
        for one, by, _ in self._held():
            squares += by * _loudness(one.outputs, metric) * (one.inputs.times(A) @ A.T)
        steeper = np.abs(squares).sum(axis=1) if whitening is None else np.sum(whitening * squares)
        return np.asarray(pair.scaling**2 * steeper, np.float64)

    async def added(
        self, host: RetainingHost, gradient: LoraGradient, weights: LoraWeights, rng: np.random.Generator
    ) -> LoraGradient:
        """`gradient`, a sum over tokens, with every domain's penalty at `weights`."""
        for domain, weight, factored in self._held():
            if weight == 0:
                continue
            if factored:
                pull = factored_penalty(domain, weights)
            else:
                chosen = _some(domain.captures, self.tokens, rng)
                pull = await host.penalty(chosen, domain.reference, weights, top_k=self.top_k)
            gradient = with_penalty(gradient, pull, weight)
        return gradient


@functools.lru_cache(maxsize=8)  # both stay the same from one replay to the next
def _loudness(outputs: Spectrum, metric: Spectrum) -> float:
    """How many times as much as in the metric a change may cost under `outputs`, at most; at least 1."""
    scaled = np.sqrt(outputs.values.astype(np.float64))[:, None] * outputs.vectors
    against = scaled @ metric.solve(scaled.T.astype(np.float32), RIDGE)
    elsewhere = outputs.rest / (metric.rest + RIDGE * float(metric.values[0]))
    return max(1.0, float(np.linalg.eigvalsh((against + against.T) / 2)[-1]) + elsewhere)


def with_penalty(gradient: LoraGradient, pull: LoraGradient, weight: float) -> LoraGradient:
    """Gradient + weight * pull, each taken as a mean over its tokens; ``loss`` likewise."""
    by = np.float32(weight * gradient.tokens / max(pull.tokens, 1))

    def both(one: F32 | None, other: F32 | None) -> F32 | None:
        return one if one is None or other is None else one + by * other

    return dataclasses.replace(
        gradient,
        micro_A=gradient.micro_A + by * pull.micro_A,
        micro_B=gradient.micro_B + by * pull.micro_B,
        base_A=both(gradient.base_A, pull.base_A),
        base_B=both(gradient.base_B, pull.base_B),
        loss=gradient.loss + float(by) * pull.loss,
    )


def factored_penalty(domain: Domain, weights: LoraWeights) -> LoraGradient:
    """1/2 tr(G D C D^T) and its gradient at `weights`, as of one token."""
    A, B = _difference(domain.reference, weights)
    AC = domain.inputs.times(A)
    GB = domain.outputs.times(B.T).T
    loss = 0.5 * float(np.sum((B.T @ GB) * (AC @ A.T)))

    def of(pair: LowRank) -> tuple[F32, F32]:
        scaled = pair.scaling * pair.lora_B.astype(np.float64)
        return _f32((scaled.T @ GB) @ AC), _f32(pair.scaling * GB @ (AC @ pair.lora_A.T))

    micro_A, micro_B = of(weights.micro)
    base_A, base_B = (None, None) if weights.base is None else of(weights.base)
    return LoraGradient(micro_A, micro_B, base_A, base_B, 1, loss, 0.0, 0.0)


def _difference(reference: LoraWeights, weights: LoraWeights) -> tuple[F64, F64]:
    """D = B A, (q, d) and (d, q)."""
    pairs = [(sign, pair) for sign, w in ((1, weights), (-1, reference)) for pair in (w.micro, w.base) if pair]
    A = np.concatenate([pair.lora_A for _, pair in pairs]).astype(np.float64)
    B = np.concatenate([sign * pair.scaling * pair.lora_B for sign, pair in pairs], axis=1).astype(np.float64)
    return A, B


def _some(captures: Sequence[Capture], tokens: int, rng: np.random.Generator) -> list[Capture]:
    """A random few, at least one, of at least `tokens` tokens where there are so many."""
    chosen: list[Capture] = []
    for i in rng.permutation(len(captures)):
        chosen.append(captures[int(i)])
        tokens -= len(chosen[-1])
        if tokens <= 0:
            break
    return chosen


def _f32(values: F64) -> F32:
    return np.ascontiguousarray(values, dtype=np.float32)
