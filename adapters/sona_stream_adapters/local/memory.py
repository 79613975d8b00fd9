"""Remembered answers in the decoding batch: rows whose request names some are mixed, all others keep their bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch

from sona_stream.events import EpisodeRef
from sona_stream_adapters.episodes import ActiveEpisodes, EpisodeStore, Mixture, mix

__all__ = ["Memory", "Mixed", "Recalled", "Recalling", "shares_of"]

Mixed = list[tuple[list[int], Mixture]]
"""rows of the batch, and what memory says about them"""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Recalled:
    """What was here of a request's episodes when the store was last looked at."""

    generation: int
    """of the store"""
    active: ActiveEpisodes | None


class Recalling(Protocol):
    """The part of a `Generation` that matters here."""

    episodes: tuple[EpisodeRef, ...]
    recalled: Recalled | None


class Memory:
    """The store, and how much it may say."""

    def __init__(self, store: EpisodeStore, *, share: float, threshold: float) -> None:
        self._store, self._share, self._threshold = store, share, threshold

    def mix(
        self, requests: Sequence[Recalling], recent: Sequence[list[int]], hidden: torch.Tensor, logits: torch.Tensor
    ) -> Mixed:
        """Row i is of ``requests[i]``, whose newest tokens are ``recent[i]``: `hidden` (n, d) unadapted, `logits`
        (n, V) as they serve; changes these.
        """
        rows: dict[int, tuple[ActiveEpisodes, list[int]]] = {}
        for row, request in enumerate(requests):
            active = self._recall(request) if request.episodes else None
            if active is not None:
                rows.setdefault(id(active), (active, []))[1].append(row)
        mixed: Mixed = []
        for active, own in rows.values():
            index = torch.tensor(own)
            said = torch.tensor([recent[row] for row in own])
            mixture = mix(
                logits[index], hidden[index], active, share=self._share, threshold=self._threshold, recent=said
            )
            mixture.write(logits, index)
            mixed.append((own, mixture))
        return mixed

    def _recall(self, request: Recalling) -> ActiveEpisodes | None:
        seen, now = request.recalled, self._store.generation
        if seen is None or seen.generation != now:
            keys, gates = [ref.key for ref in request.episodes], [ref.gate for ref in request.episodes]
            shares = [ref.share for ref in request.episodes]
            active = self._store.activate(keys, gates, None if seen is None else seen.active, shares=shares)
            seen = request.recalled = Recalled(now, active)
        return seen.active


def shares_of(mixed: Mixed, token_ids: Sequence[int]) -> list[float]:
    """The part of each row's token that came from memory; 0 for rows that were not mixed."""
    shares = [0.0] * len(token_ids)
    for rows, mixture in mixed:
        found = mixture.share(torch.tensor([token_ids[row] for row in rows]))
        for row, share in zip(rows, found.tolist(), strict=True):
            shares[row] = share
    return shares
