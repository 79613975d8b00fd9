"""The episodes that a host holds, within a budget of bytes."""

from __future__ import annotations

import logging
import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sona_stream.errors import HostError
from sona_stream.lora import HiddenSpace

from .mixing import ActiveEpisodes, Episode
from .space import Space

__all__ = ["EpisodeStore"]

_log = logging.getLogger(__name__)


class EpisodeStore:
    """Key -> Episode; the least recently used goes first. Safe between threads.

    An answer under way goes on with what it found, also when that has to make room, until it ends or the key is
    dropped: it would else begin as the correction and end as the model's own. So `max_bytes` bounds `nbytes`, what
    is here for requests to come. Beside it stand `held_bytes`: for each answer under way its episodes once more,
    in float32 (twice their `nbytes`), and of those that it outlived here the episodes themselves, once for all.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        limit: str,
        hidden_dim: int,
        vocab_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """`limit`: the name of the setting that bounds it, for errors."""
        self.generation = 0
        """another number after each change of what is here"""
        self.evictions = 0
        self.max_bytes, self.limit = max_bytes, limit
        self._hidden_dim, self._vocab_size, self._device = hidden_dim, vocab_size, torch.device(device)
        self._episodes: OrderedDict[str, Episode] = OrderedDict()
        self._evicted: weakref.WeakSet[Episode] = weakref.WeakSet()
        """those that answers under way still hold"""
        self._active: weakref.WeakSet[ActiveEpisodes] = weakref.WeakSet()
        self._spaces: dict[bytes, Space] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._episodes)

    def __contains__(self, key: str) -> bool:
        return key in self._episodes

    @property
    def nbytes(self) -> int:
        """On the device, for requests to come."""
        return self._bytes

    @property
    def held_bytes(self) -> int:
        """On the device, for the answers under way."""
        with self._lock:
            return sum(one.nbytes for one in self._active) + sum(one.nbytes for one in self._evicted)

    def holds(self, key: str, token_ids: NDArray[np.int32], space: HiddenSpace) -> bool:
        """Whether an episode of this key, these tokens and this space is here; it counts as used."""
        with self._lock:
            known = self._episodes.get(key)
            if known is None or known.version != space.version:
                return False
            self._episodes.move_to_end(key)
        return np.array_equal(known.token_ids.cpu().numpy(), token_ids)

    def put(
        self,
        key: str,
        hidden: NDArray[np.float32],
        token_ids: NDArray[np.int32],
        space: HiddenSpace | None = None,
    ) -> list[str]:
        """`hidden` (T, d) of the unadapted model, `token_ids` (T,); without a space states are compared as they
        are. Returns the keys of those that had to go for it. Raises HostError naming the field and the limit.
        """
        self._check(key, hidden, token_ids, space)
        with self._lock:
            episode = self._made(key, hidden, token_ids, space)
            if episode.nbytes > self.max_bytes:
                raise HostError(
                    f"episode {key!r} needs {episode.nbytes} bytes; {self.limit} allows {self.max_bytes}"
                )
            self._forget(key)
            self._episodes[key] = episode
            self._bytes += episode.nbytes
            self.generation += 1
            evicted = []
            while self._bytes > self.max_bytes:
                oldest, gone = next(iter(self._episodes.items()))
                self._forget(oldest)
                self._evicted.add(gone)
                evicted.append(oldest)
            if evicted and not self.evictions:
                _log.warning(
                    "%s is full: of %d episodes the least recently used make room and are put again when they are "
                    "recalled",
                    self.limit,
                    len(self._episodes),
                )
            self.evictions += len(evicted)
        return evicted

    def drop(self, key: str) -> bool:
        """Whether it was here, or is yet with an answer under way; these go on without it, too."""
        with self._lock:
            gone = [episode for episode in self._evicted if episode.key == key]
            self._evicted.difference_update(gone)
            if self._forget(key):
                return True
            self.generation += bool(gone)
            return bool(gone)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._episodes.clear()
            self._evicted.clear()
            self._spaces.clear()
            self._bytes = 0
            self.generation += 1

    def activate(
        self,
        keys: Sequence[str],
        gates: Sequence[float],
        known: ActiveEpisodes | None = None,
        *,
        shares: Sequence[float] = (),
    ) -> ActiveEpisodes | None:
        """Those of them that are here with a gate above 0; None when there is none. `known`: what this answer drew
        on so far; of that it keeps what had to make room, and the very object when nothing changed. `shares`: of
        each, how much it may decide; none given: all of it.
        """
        named = []
        with self._lock:
            kept = {} if known is None else {one.key: one for one, *_ in known.named if one in self._evicted}
            for key, gate, share in zip(keys, gates, shares or (1.0,) * len(keys), strict=True):
                episode = self._episodes.get(key)
                if episode is not None:
                    self._episodes.move_to_end(key)
                episode = episode or kept.get(key)
                if episode is not None and gate > 0 and share > 0:
                    named.append((episode, min(gate, 1.0), min(share, 1.0)))
        if not named:
            return None
        if known is not None and known.is_of(tuple(named)):
            return known
        active = ActiveEpisodes.of(tuple(named))
        with self._lock:
            self._active.add(active)
        return active

    def _made(
        self, key: str, hidden: NDArray[np.float32], token_ids: NDArray[np.int32], space: HiddenSpace | None
    ) -> Episode:
        states = torch.from_numpy(np.array(hidden, np.float32)).to(self._device)
        ids = torch.from_numpy(token_ids.astype(np.int64)).to(self._device)
        if space is None:
            return Episode(key, None, torch.nn.functional.normalize(states, dim=1).half(), ids)
        held = self._space(space)
        return Episode(key, held, held.unit(states).half(), ids, space.version)

    def _space(self, space: HiddenSpace) -> Space:
        """One object a space, so that episodes of one space are compared at once."""
        name = space.mean.tobytes() + space.spread.tobytes()
        if name not in self._spaces:
            used = {id(episode.space) for episode in (*self._episodes.values(), *self._evicted)}
            self._spaces = {known: one for known, one in self._spaces.items() if id(one) in used}
            self._spaces[name] = Space.of(space, self._device)
        return self._spaces[name]

    def _forget(self, key: str) -> bool:
        gone = self._episodes.pop(key, None)
        if gone is None:
            return False
        self._bytes -= gone.nbytes
        self.generation += 1
        return True

    def _check(
        self, key: str, hidden: NDArray[np.float32], token_ids: NDArray[np.int32], space: HiddenSpace | None
    ) -> None:
        tokens = hidden.shape[0] if hidden.ndim == 2 else 0
        if tokens < 1 or hidden.shape[1] != self._hidden_dim:
            raise HostError(
                f"episode {key!r}: hidden has shape {hidden.shape}, expected (tokens, {self._hidden_dim})"
            )
        if token_ids.shape != (tokens,) or token_ids.min() < 0 or token_ids.max() >= self._vocab_size:
            raise HostError(f"episode {key!r}: expected {tokens} token_ids below {self._vocab_size}")
        if not math.isfinite(float(np.abs(hidden).max())):
            raise HostError(f"episode {key!r}: every entry must be a finite number")
        for values in () if space is None else (space.mean, space.spread):
            if values.shape != (self._hidden_dim,) or not np.isfinite(values).all():
                raise HostError(f"episode {key!r}: mean and spread must be {self._hidden_dim} finite numbers")
