"""Teacher-forced forward passes of captured answers under an adapter with layers, several answers at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from sona_stream.lora import Capture
from sona_stream_adapters.head import Factors

from ..model import LanguageModel

__all__ = ["Busy", "answer_states", "passes"]

IDLE_TOKENS = 768
"""positions, padding included, of one pass while nobody is waiting for a token"""

Busy = Callable[[], bool]
"""Whether answers are streaming: a pass then takes one capture, the smallest slice there is."""


def passes(captures: Sequence[Capture], is_busy: Busy) -> Iterator[list[int]]:
    """Indices of captures that share a pass. Those of like length go together, so that padding costs little."""
    left = sorted(range(len(captures)), key=lambda i: _length(captures[i]))
    while left:
        taken = [left.pop()]
        longest = _length(captures[taken[0]])
        while left and not is_busy() and longest * (len(taken) + 1) <= IDLE_TOKENS:
            taken.append(left.pop())
        if any(len(captures[i]) for i in taken):
            yield [i for i in taken if len(captures[i])]


def answer_states(model: LanguageModel, captures: Sequence[Capture], factors: Factors | None) -> torch.Tensor:
    """(N, d): the final states that each token was drawn from, the layers of `factors` applied and the final pair
    not. Keeps what autograd needs where gradients are enabled.
    """
    sequences = [[*capture.prompt_ids.tolist(), *capture.token_ids[:-1].tolist()] for capture in captures]
    longest = max(map(len, sequences))
    # Padding comes after, so causal attention never sees it.
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in sequences])
    allowed = torch.ones(longest, longest, dtype=torch.bool).tril()
    mask = torch.zeros(longest, longest).masked_fill_(~allowed, -torch.inf)[None, None]
    states = model.read(ids, mask, [factors] * len(captures))
    starts = [len(capture.prompt_ids) - 1 for capture in captures]
    return torch.cat([states[row, at : at + len(captures[row])] for row, at in enumerate(starts)])


def _length(capture: Capture) -> int:
    return int(np.size(capture.prompt_ids)) + len(capture)
