"""Memory of episodes: (hidden state, next token) pairs of accepted answers, mixed in at the logits of the requests
that name them (k-nearest-neighbour language models: Khandelwal et al. 2020, https://arxiv.org/abs/1911.00172).

    s_i = cos(h, h_i) g_e over the pairs of the named episodes, h standardised
    w = softmax(20 s over the top 32)      p_memory = sum w_i onehot(y_i)
    p = (1 - l) p_model + l p_memory       l = share * sigmoid(25 (max s - threshold))
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .refusal import Refusal

__all__ = ["ActiveEpisodes", "Episode", "EpisodeStore", "Mixture", "Space", "mix"]

NEIGHBOURS = 32
SHARPNESS = 20.0
STEEPNESS = 25.0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Space:
    """How states are standardised before they are compared: (h - mean) / spread."""

    mean: torch.Tensor
    """(d,) float32"""
    inverse_spread: torch.Tensor
    """(d,) float32"""

    def unit(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, d) -> (n, d) float32 of length 1."""
        return torch.nn.functional.normalize((hidden.float() - self.mean) * self.inverse_spread, dim=1)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """One accepted answer."""

    space: Space | None
    keys: torch.Tensor
    """(T, d) float16 of length 1"""
    token_ids: torch.Tensor
    """(T,) int64"""

    @property
    def nbytes(self) -> int:
        """On the device."""
        return self.keys.numel() * 2 + self.token_ids.numel() * 8


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ActiveEpisodes:
    """Those that one request names, by the space they were standardised in."""

    parts: list[tuple[Space | None, torch.Tensor, torch.Tensor]]
    """(space, keys (n, d) float32, gates (n,))"""
    token_ids: torch.Tensor
    """(N,) int64, of all parts"""

    def similarities(self, hidden: torch.Tensor) -> torch.Tensor:
        """(m, d) -> (m, N)."""
        found = []
        for space, keys, gates in self.parts:
            unit = torch.nn.functional.normalize(hidden.float(), dim=1) if space is None else space.unit(hidden)
            found.append((unit @ keys.T) * gates)
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """What `mix` made of some rows."""

    logprobs: torch.Tensor
    """(m, V) float32: log p, to be used as logits"""
    own: torch.Tensor
    """(m, V) float32: log((1 - l) p_model), the model's own part of it"""


def mix(
    logits: torch.Tensor, hidden: torch.Tensor, episodes: ActiveEpisodes, *, share: float, threshold: float
) -> Mixture:
    """`logits` (m, V) at temperature 1 and `hidden` (m, d) of the unadapted model."""
    similar = episodes.similarities(hidden)
    top, index = torch.topk(similar, min(NEIGHBOURS, similar.shape[1]), dim=1)
    weights = torch.softmax(SHARPNESS * top, dim=1)
    amount = share * torch.sigmoid(STEEPNESS * (top[:, :1] - threshold))
    memory = torch.zeros(logits.shape, dtype=torch.float32, device=logits.device)
    memory.scatter_add_(1, episodes.token_ids[index], weights)
    own = torch.log_softmax(logits.float(), dim=1) + torch.log1p(-amount)
    return Mixture(torch.logaddexp(own, (memory * amount).log_()), own)


class EpisodeStore:
    """Key -> Episode within a budget of bytes; the least recently used goes first."""

    def __init__(
        self, *, max_bytes: int, hidden_dim: int, vocab_size: int, device: torch.device | str = "cpu"
    ) -> None:
        self.generation = 0
        self.evictions = 0
        self._max_bytes = max_bytes
        self._hidden_dim, self._vocab_size, self._device = hidden_dim, vocab_size, torch.device(device)
        self._episodes: OrderedDict[str, Episode] = OrderedDict()
        self._spaces: dict[bytes, Space] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._episodes)

    @property
    def nbytes(self) -> int:
        """On the device."""
        return self._bytes

    def put(
        self,
        key: str,
        hidden: NDArray[np.float32],
        token_ids: NDArray[np.int32],
        mean: NDArray[np.float32] | None = None,
        spread: NDArray[np.float32] | None = None,
    ) -> None:
        """`hidden` (T, d) of the unadapted model, `token_ids` (T,); `mean` and `spread` (d,) standardise, without
        them states are compared as they are. Raises Refusal naming the field and the limit.
        """
        self._check(key, hidden, token_ids, mean, spread)
        space = None if mean is None else self._space(mean, np.ones_like(mean) if spread is None else spread)
        states = torch.from_numpy(hidden).to(self._device)
        keys = torch.nn.functional.normalize(states, dim=1) if space is None else space.unit(states)
        ids = torch.from_numpy(token_ids.astype(np.int64)).to(self._device)
        episode = Episode(space, keys.half(), ids)
        if episode.nbytes > self._max_bytes:
            raise Refusal(
                f"episode {key!r} needs {episode.nbytes} bytes; SONA_VLLM_EPISODE_MB allows {self._max_bytes}"
            )
        self.drop(key)
        self._episodes[key] = episode
        self._bytes += episode.nbytes
        self.generation += 1
        while self._bytes > self._max_bytes:
            _, gone = self._episodes.popitem(last=False)
            self._bytes -= gone.nbytes
            self.evictions += 1

    def drop(self, key: str) -> bool:
        """Whether it was here."""
        gone = self._episodes.pop(key, None)
        if gone is None:
            return False
        self._bytes -= gone.nbytes
        self.generation += 1
        return True

    def clear(self) -> None:
        """Forget everything."""
        self._episodes.clear()
        self._spaces.clear()
        self._bytes = 0
        self.generation += 1

    def activate(self, keys: Sequence[str], gates: Sequence[float]) -> ActiveEpisodes | None:
        """Those of them that are here with a gate above 0; None when there is none."""
        named = [(self._episodes[k], g) for k, g in zip(keys, gates, strict=True) if k in self._episodes and g > 0]
        if not named:
            return None
        for key in keys:
            if key in self._episodes:
                self._episodes.move_to_end(key)
        by_space: dict[int, list[tuple[Episode, float]]] = {}
        for episode, gate in named:
            by_space.setdefault(id(episode.space), []).append((episode, gate))
        parts, ids = [], []
        for group in by_space.values():
            weights = [torch.full((len(e.token_ids),), g, device=self._device) for e, g in group]
            parts.append((group[0][0].space, torch.cat([e.keys for e, _ in group]).float(), torch.cat(weights)))
            ids += [e.token_ids for e, _ in group]
        return ActiveEpisodes(parts, torch.cat(ids))

    def _space(self, mean: NDArray[np.float32], spread: NDArray[np.float32]) -> Space:
        name = mean.tobytes() + spread.tobytes()
        if name not in self._spaces:
            used = {id(episode.space) for episode in self._episodes.values()}
            self._spaces = {known: space for known, space in self._spaces.items() if id(space) in used}
            inverse = 1.0 / np.maximum(spread, 1e-6)
            self._spaces[name] = Space(*(torch.from_numpy(each).to(self._device) for each in (mean, inverse)))
        return self._spaces[name]

    def _check(self, key: str, hidden: NDArray[np.float32], token_ids: NDArray[np.int32], *space: object) -> None:
        tokens = hidden.shape[0] if hidden.ndim == 2 else 0
        if tokens < 1 or hidden.shape[1] != self._hidden_dim:
            raise Refusal(
                f"episode {key!r}: hidden has shape {hidden.shape}, expected (tokens, {self._hidden_dim})"
            )
        if token_ids.shape != (tokens,) or token_ids.min() < 0 or token_ids.max() >= self._vocab_size:
            raise Refusal(f"episode {key!r}: expected {tokens} token_ids below {self._vocab_size}")
        if not math.isfinite(float(np.abs(hidden).max())):
            raise Refusal(f"episode {key!r}: every entry must be a finite number")
        for values in space:
            if isinstance(values, np.ndarray) and not (
                values.shape == (self._hidden_dim,) and np.isfinite(values).all()
            ):
                raise Refusal(f"episode {key!r}: mean and spread must be {self._hidden_dim} finite numbers")
