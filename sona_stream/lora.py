"""The values of low-rank adaptation: weights, captures, signals, gradients. Arrays only, no policy.

Shapes: ``d`` hidden size, ``r`` rank, ``T`` tokens of one answer. float32 throughout. The adapter is

    h'_t = h_t + s_m B_m (A_m h_t) + s_b B_b (A_b h_t),     logits_t = W h'_t

(LoRA: Hu et al. 2021, https://arxiv.org/abs/2106.09685, applied to the final hidden state.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AdapterRecord",
    "Capture",
    "Curvature",
    "Evaluation",
    "HiddenSpace",
    "LoraGradient",
    "LoraWeights",
    "LowRank",
    "Spectrum",
    "TokenSignal",
]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


@dataclasses.dataclass(frozen=True, slots=True)
class LowRank:
    """One pair of factors: delta(h) = scaling * lora_B @ (lora_A @ h)."""

    lora_A: F32
    """(r, d)"""
    lora_B: F32
    """(d, r)"""
    scaling: float = 1.0

    def delta(self, hidden_states: F32) -> F32:
        """(n, d) -> (n, d): the change alone, without the residual."""
        return np.asarray(self.scaling * ((hidden_states @ self.lora_A.T) @ self.lora_B.T), dtype=np.float32)

    def is_finite(self) -> bool:
        """Whether every entry is a finite number."""
        return bool(np.isfinite(self.lora_A).all() and np.isfinite(self.lora_B).all())

    @property
    def nbytes(self) -> int:
        """Size of both factors in bytes."""
        return int(self.lora_A.nbytes + self.lora_B.nbytes)


@dataclasses.dataclass(frozen=True, slots=True)
class LoraWeights:
    """A whole adapter: the fast micro pair and, once something was consolidated, the slow base pair.

    ``layers``: pairs inside the model, by the number of the decoder layer whose output they change. Research, on a
    local model that names them (`LayeredHost`); every other host refuses them.
    """

    micro: LowRank
    base: LowRank | None = None
    layers: Mapping[int, LowRank] = dataclasses.field(default_factory=dict)

    def delta(self, hidden_states: F32) -> F32:
        """(n, d) -> (n, d): the sum of both deltas of the final hidden state."""
        out = self.micro.delta(hidden_states)
        return out if self.base is None else out + self.base.delta(hidden_states)

    def is_finite(self) -> bool:
        """Whether every entry is a finite number."""
        return all(pair.is_finite() for pair in self.pairs)

    @property
    def pairs(self) -> list[LowRank]:
        """All of them: micro, base where there is one, and those of the layers."""
        return [self.micro, *([] if self.base is None else [self.base]), *self.layers.values()]

    @property
    def hidden_dim(self) -> int:
        """D"""
        return int(self.micro.lora_A.shape[1])

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(pair.nbytes for pair in self.pairs)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Capture:
    """What a host remembers of one answer. Row t is the state that token t was drawn from.

    A remote host may leave ``hidden`` empty (0, d) and find the states by ``handle``.
    """

    request_id: str
    fingerprint: str
    """Of the host's model: captures are never mixed across models."""
    prompt_ids: I32
    """(P,)"""
    token_ids: I32
    """(T,) as emitted, the end token included when it was drawn"""
    hidden: F32
    """(T, d) final post-norm states of the unadapted model, before lm_head"""
    logprobs: F32
    """(T,) natural log-probability of each token under the policy that drew it (adapter and temperature
    applied; before top-p and top-k)"""
    adapter_versions: I32
    """(T,) version that drew each token, 0 = none"""
    adapter_key: str | None = None
    temperature: float = 1.0
    """0 counts as 1 in gradients"""
    handle: str | None = None
    memory: F32 | None = None
    """(T,) share of each token's probability that came from remembered episodes, in [0, 1]; None: none did. Above
    1/2 memory decided the token, and an adapter learns nothing from it."""

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(
            self.prompt_ids.nbytes
            + self.token_ids.nbytes
            + self.hidden.nbytes
            + self.logprobs.nbytes
            + self.adapter_versions.nbytes
            + (0 if self.memory is None else self.memory.nbytes)
        )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TokenSignal:
    """What to differentiate: the loss (to be minimised), summed over all tokens of all captures,

        L = sum_t [ -a_t * rho_t * log p_t(y_t) ] + anchor * sum_t KL(p_t || p0_t)

    p at `weights`, p0 without adapter, both at the capture's temperature. With `ratio_clip` = (lo, hi) the
    ratio rho_t = p_t(y_t) / exp(capture.logprobs_t) enters as in PPO (Schulman et al. 2017,
    https://arxiv.org/abs/1707.06347): a token whose clipped branch is active gives no gradient; otherwise the
    factor is rho_t (held constant in the formula above). Without it rho_t = 1.
    """

    weights: LoraWeights
    advantages: Sequence[F32]
    """one (T_i,) array a capture; a demonstration or correction has advantage 1 on every token"""
    anchor: float = 0.0
    ratio_clip: tuple[float, float] | None = None
    top_k: int | None = None
    """None: the whole vocabulary. k: rows of lm_head cut to the union of each position's k likeliest tokens and
    the labels"""
    fisher: bool = False


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class LoraGradient:
    """dL/d(factor) for each factor of the weights, summed over tokens, and what was seen on the way."""

    micro_A: F32
    micro_B: F32
    base_A: F32 | None
    base_B: F32 | None
    tokens: int
    loss: float
    mean_kl_to_base: float
    """mean over tokens of KL(p_t || p0_t)"""
    mean_logprob: float
    """mean over tokens of log p_t(y_t) at `weights`"""
    fisher_A: F32 | None = None
    fisher_B: F32 | None = None
    layers: Mapping[int, tuple[F32, F32]] = dataclasses.field(default_factory=dict)
    """dL/dA (r, d) and dL/dB (d, r) of the pairs inside the model"""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """How `weights` would treat captured answers: nothing is changed by asking."""

    mean_kl_to_base: float
    max_kl_to_base: float
    logprobs: Sequence[F32]
    """one (T_i,) array a capture: log p_t(y_t) at `weights`"""
    base_logprobs: Sequence[F32]
    """the same without adapter"""
    mean_delta_ratio: float
    """mean over tokens of |h' - h| / |h|"""
    max_delta_ratio: float
    finite: bool = True
    collision: float | None = None
    """the chance that two positions, taken at random, draw the same token: sum_v (mean_t p_t(v))^2; None here and
    below: the host does not say"""
    base_collision: float | None = None
    """the same without adapter"""
    repeat_mass: float | None = None
    """mean over tokens of the probability of the (different) tokens among the 16 before"""
    base_repeat_mass: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """A symmetric positive (d, d) matrix by its largest eigenpairs, and one value for all other directions."""

    vectors: F32
    """(k, d), orthonormal rows, the largest first"""
    values: F32
    """(k,) > 0"""
    rest: float
    """mean of the other eigenvalues"""

    def times(self, rows: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """`rows` (n, d) times the matrix, (n, d) in double precision."""
        vectors = self.vectors.astype(np.float64)
        along = rows.astype(np.float64) @ vectors.T
        out: NDArray[np.float64] = self.rest * rows + (along * (self.values - self.rest)) @ vectors
        return out

    def solve(self, columns: F32, ridge: float) -> F32:
        """(M + ridge * largest * I)^-1 `columns`, (d, n) -> (d, n)."""
        floor = ridge * float(self.values[0])
        outside = 1.0 / (self.rest + floor)
        inside = 1.0 / (self.values.astype(np.float64) + floor) - outside
        along = inside[:, None] * (self.vectors @ columns)
        return np.asarray(self.vectors.T @ along + outside * columns, dtype=np.float32)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Curvature:
    """How the unadapted policy answers to changes of its hidden states: what steps are measured by."""

    tokens: int
    rms: float
    """root mean square over all entries of the hidden states"""
    constant: F32
    """(d,) a, with a . h as near to 1 on every token as a ridge regression gets: what a bias is made of"""
    outputs: Spectrum
    """of E[g g^T], g_t = d log p(y_t) / d h_t (Fisher information): a change u of the hidden states costs
    1/2 u^T E[g g^T] u nats per token"""
    scores: F32
    """(n, d), one row a capture: the mean of its g_t"""
    inputs: Spectrum | None = None
    """of E[h h^T]: what the hidden states are like; None where a host does not say"""
    contrast: F32 | None = None
    """(d,) the same regression as ``constant``'s, of 1 on these states and of 0 on those from elsewhere; None where
    none were given"""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class HiddenSpace:
    """How states are standardised before they are compared, (h - mean) / spread: fixed for a model."""

    mean: F32
    """(d,)"""
    spread: F32
    """(d,) standard deviations, > 0"""
    version: str
    """of the text and the rule that they come from: spaces of other versions are not compared"""


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AdapterRecord:
    """One version of one adapter, as the store keeps it: weights, the optimiser's moments, and its history."""

    key: str
    """``model/tenant/group``"""
    version: int
    """counts from 1 within the key"""
    parent: int | None
    """version it was stepped from"""
    fingerprint: str
    weights: LoraWeights
    moments: Mapping[str, F32] = dataclasses.field(default_factory=dict)
    """optimiser state by name; belongs to this version"""
    status: Literal["published", "observed", "rolled_back", "canary", "withdrawn"] = "published"
    reason: str = ""
    """what made it: step, replay, consolidate, rollback"""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """what the gates measured"""
    feedback_ids: tuple[str, ...] = ()
    created_at: float = 0.0
