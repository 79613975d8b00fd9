"""Drawing the next token of each row of a batch."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["COLDEST", "Drawn", "SamplingState", "draw"]

COLDEST = 0.01
"""What lies between it and 0 counts as it, as in vLLM: logits over much less are infinite in float32."""


@dataclasses.dataclass(slots=True, kw_only=True)
class SamplingState:
    """One request's sampling parameters and what they depend on: its random stream and its tokens so far."""

    temperature: float
    """0 = greedy; at least `COLDEST` otherwise"""
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int = 0
    rng: np.random.Generator = dataclasses.field(default_factory=np.random.default_rng)
    counts: Counter[int] = dataclasses.field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.temperature > 0:
            self.temperature = max(self.temperature, COLDEST)

    @property
    def penalised(self) -> bool:
        """Whether either penalty is on."""
        return bool(self.presence_penalty or self.frequency_penalty)

    @property
    def policy_temperature(self) -> float:
        """Temperature of the policy that gradients see; greedy counts as 1."""
        return self.temperature or 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Drawn:
    """A token and its natural log-probabilities."""

    token_id: int
    logprob: float
    """at temperature 1: what a client is shown"""
    policy_logprob: float
    """at the request's temperature, before top-p and penalties: what learning uses"""
    top: tuple[tuple[int, float], ...] = ()
    """the likeliest tokens at temperature 1"""


def draw(logits: torch.Tensor, states: Sequence[SamplingState]) -> list[Drawn]:
    """One token a row from `logits` (n, V). Each row uses its own random stream, so its draws do not depend on
    who else is in the batch.
    """
    shown = torch.log_softmax(logits, dim=1)
    inverse = torch.tensor([1.0 / state.policy_temperature for state in states])
    plain = bool((inverse == 1.0).all())
    policy = shown if plain else torch.log_softmax(logits * inverse[:, None], dim=1)
    choosing = _penalise(logits, states)
    drawn_from = policy if choosing is logits else torch.log_softmax(choosing * inverse[:, None], dim=1)
    ids = _choose(drawn_from, states)
    index = torch.tensor(ids)[:, None]
    shown_of, policy_of = shown.gather(1, index)[:, 0].tolist(), policy.gather(1, index)[:, 0].tolist()
    drawn = []
    for row, (state, token_id) in enumerate(zip(states, ids, strict=True)):
        state.counts[token_id] += 1
        drawn.append(Drawn(token_id, shown_of[row], policy_of[row], _top(shown[row], state.top_logprobs)))
    return drawn


def _penalise(logits: torch.Tensor, states: Sequence[SamplingState]) -> torch.Tensor:
    """OpenAI's presence and frequency penalties over the tokens answered so far."""
    if not any(state.penalised and state.counts for state in states):
        return logits
    out = logits.clone()
    for row, state in enumerate(states):
        if state.penalised and state.counts:
            ids = torch.tensor(list(state.counts))
            counts = torch.tensor(list(state.counts.values()), dtype=logits.dtype)
            out[row, ids] -= state.presence_penalty + state.frequency_penalty * counts
    return out


def _choose(logprobs: torch.Tensor, states: Sequence[SamplingState]) -> list[int]:
    ids = logprobs.argmax(dim=1).tolist()
    rows = [row for row, state in enumerate(states) if state.temperature > 0 and state.top_p >= 1]
    if rows:
        # Inverse of the cumulative distribution, in double: 50,000 small terms would drift in single.
        cumulative = logprobs[rows].double().exp_().cumsum_(dim=1)
        u = torch.tensor([states[row].rng.random() for row in rows], dtype=torch.float64)[:, None]
        at = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)
        for row, token_id in zip(rows, at.clamp_(max=logprobs.shape[1] - 1)[:, 0].tolist(), strict=True):
            ids[row] = token_id
    for row, state in enumerate(states):
        if state.temperature > 0 and state.top_p < 1:
            ids[row] = _nucleus(logprobs[row], state)
    return ids


def _nucleus(logprobs: torch.Tensor, state: SamplingState) -> int:
    """Draw from the smallest set of likeliest tokens whose probability reaches top_p
    (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751). Sorts only as much as it needs.
    """
    size = logprobs.shape[0]
    k = min(128, size)
    while True:
        values, ids = torch.topk(logprobs, k)
        cumulative = values.double().exp_().cumsum_(dim=0)
        if cumulative[-1] >= state.top_p or k == size:
            break
        k = min(8 * k, size)
    kept = int(torch.searchsorted(cumulative, state.top_p)) + 1
    cumulative = cumulative[:kept]
    at = int(torch.searchsorted(cumulative, state.rng.random() * cumulative[-1], right=True))
    return int(ids[min(at, len(cumulative) - 1)])


def _top(logprobs: torch.Tensor, count: int) -> tuple[tuple[int, float], ...]:
    if count <= 0:
        return ()
    values, ids = torch.topk(logprobs, min(count, logprobs.shape[0]))
    return tuple(zip(ids.tolist(), values.tolist(), strict=True))
