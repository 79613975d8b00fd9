"""A tenant's last tokens as a memory without a gate on queries, mixed in as far as it has been right so far.

This is the benchmark's own: what a memory over a stream can reach at the last layer. The product's memory is
another one (answers to questions, behind a gate on the question, `sona_stream.engine.memory`); it has neither a
match model nor gates that are learned online, and does not serve running text.

Experts on the next token, beside the adapted model:

* exact nearest neighbours (k-nearest-neighbour language models: Khandelwal et al. 2020,
  https://arxiv.org/abs/1911.00172; continuous cache: Grave et al. 2017), once for each of `SHARPNESS`:

      s_i = cos(h, h_i), h standardised      p = sum_i softmax(sharpness * s, best `NEIGHBOURS`)_i onehot(y_i)

* what followed the last tokens where they came before (match model: Mahoney 2005), followed as long as it is right

They are mixed, p = sum_k softmax(G x)_k p_k, by gates G that are learned online (Jacobs et al. 1991): after each
token one AdaGrad step up the log-likelihood. x: 1, the best s, how far the neighbours agree, and whether there is
a match, how long it is and whether the nearest neighbour says the same. A token may draw on every token before it,
those of its own segment included: each is known by then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sona_stream.lora import F32, Capture, HiddenSpace

__all__ = ["Match", "Mixture", "StreamMemory"]

F64 = NDArray[np.float64]
CAPACITY = 65_536
"""tokens"""
NEIGHBOURS = 256
SHARPNESS = (10.0, 20.0, 40.0)
AGREEMENT = 1
"""index of the sharpness by which agreement is told"""
FEATURES = 6
RATE = 0.2
LEAST = 1e-6
"""share that every expert keeps"""


class Match:
    """What followed the last tokens where they came last; a match that is right is followed on. As many tokens as
    ``shortest`` must agree for one to begin, and more than ``longest`` are not counted.
    """

    shortest, longest = 2, 32

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._at, self._length = -1, 0

    def predict(self) -> tuple[int, int]:
        """(token, length of the match); (-1, 0) without one."""
        return (self._tokens[self._at], self._length) if self._at >= 0 else (-1, 0)

    def see(self, token: int) -> None:
        """What came."""
        goes_on = self.predict()[0] == token
        self._tokens.append(token)
        if goes_on:
            self._at, self._length = self._at + 1, min(self._length + 1, self.longest)
        else:
            self._at, self._length = -1, 0
        ending = tuple(self._tokens[-self.shortest :])
        if self._at < 0 and ending in self._after:
            self._at = self._after[ending]
            self._length = self._common(self._at)
        if len(ending) == self.shortest:
            self._after[ending] = len(self._tokens)

    def _common(self, at: int) -> int:
        """How many tokens before ``at`` are the last ones."""
        length = 0
        while length < min(at, self.longest) and self._tokens[at - 1 - length] == self._tokens[-1 - length]:
            length += 1
        return length


class Mixture:
    """Probabilities of experts, mixed by gates that learn which of them to trust when."""

    def __init__(self, experts: int) -> None:
        self._gates = np.zeros((experts, FEATURES))
        self._gates[0, 0] = 1.0  # the first is trusted until another proves better
        self._squares = np.full_like(self._gates, 1e-2)

    def see(self, x: F64, told: F64) -> float:
        """The mixture's probability of the token that came, of which the experts ``told`` (k,); learns from it."""
        logits = self._gates @ x
        shares = np.exp(logits - logits.max())
        shares = shares / shares.sum() * (1 - LEAST * len(shares)) + LEAST
        mixed = max(float(shares @ told), 1e-12)
        slope = np.outer(shares * told / mixed - shares, x)
        self._squares += slope**2
        self._gates += RATE * slope / np.sqrt(self._squares)
        return mixed


class StreamMemory:
    """`RATE`, `SHARPNESS` and `NEIGHBOURS` were chosen on segments 500-539 of the stream domains, which no row
    reports.
    """

    def __init__(self, space: HiddenSpace) -> None:
        self._mean, self._spread = torch.from_numpy(space.mean), torch.from_numpy(space.spread)
        self._keys = torch.empty(0, len(space.mean))
        self._labels: deque[int] = deque(maxlen=CAPACITY)
        self._match, self._mixture = Match(), Mixture(2 + len(SHARPNESS))

    def see(self, segment: Capture, logprobs: F32) -> F32:
        """(T,) log-probability of each token, mixed with the `logprobs` that the model gave it; then remembers."""
        units = (torch.from_numpy(segment.hidden) - self._mean) / self._spread
        units = torch.nn.functional.normalize(units, dim=1)
        keys = torch.cat([self._keys, units])
        known = len(self._keys)
        labels = np.asarray([*self._labels, *segment.token_ids.tolist()])
        similar = units @ keys.T
        similar.masked_fill_(torch.arange(len(keys))[None] >= known + torch.arange(len(units))[:, None], -torch.inf)
        nearest, at = torch.topk(similar, min(NEIGHBOURS, similar.shape[1]), dim=1)
        tokens = zip(segment.token_ids, logprobs, nearest.double().numpy(), labels[at.numpy()], strict=True)
        mixed = [self._token(int(token), float(own), near, said) for token, own, near, said in tokens]
        self._keys = keys[-CAPACITY:]
        self._labels.extend(segment.token_ids.tolist())
        return np.asarray(np.log(mixed), dtype=np.float32)

    def _token(self, token: int, own: float, near: F64, said: NDArray[np.int64]) -> float:
        """Its probability. ``near`` (n,): similarities of neighbours, or -inf; ``said`` (n,): what they say."""
        matched, length = self._match.predict()
        self._match.see(token)
        weights = [_softmax(sharpness * near) for sharpness in SHARPNESS]
        told = [float(np.exp(own)), *_shares(weights, said == token), float(matched == token)]
        is_match, agreement = matched >= 0, _shares(weights[AGREEMENT : AGREEMENT + 1], said == said[0])[0]
        best = 4 * (max(float(near[0]), -1.0) - 0.8)
        x = [1.0, best, agreement - 0.5, said[0] == matched, np.log1p(length), is_match]
        return self._mixture.see(np.asarray(x, dtype=np.float64), np.asarray(told))


def _softmax(logits: F64) -> F64:
    """Zeros where nothing is there."""
    if not np.isfinite(logits[0]):  # the very first token has nothing behind it
        return np.zeros_like(logits)
    weights = np.exp(logits - logits[0])
    return np.asarray(weights / weights.sum())


def _shares(weights: Sequence[F64], which: NDArray[np.bool_]) -> list[float]:
    return [float(one[which].sum()) for one in weights]
