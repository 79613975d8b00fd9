"""Pairs of layers at birth, measured by what each layer puts out on a fixed text."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Sequence

import numpy as np
import torch

from sona_stream.errors import HostError
from sona_stream.lora import F32, LowRank
from sona_stream_adapters.head import constant_row
from sona_stream_adapters.text import reference_ids

from ..model import LanguageModel

__all__ = ["Births"]

_RANDOM_GAIN = 0.5
"""standard deviation of A h on the random rows, where that of the constant one is its mean"""


class Births:
    """Of adapters with these layers, at this rank. The model is read once."""

    def __init__(self, model: LanguageModel, layers: Sequence[int], rank: int) -> None:
        self._model, self._layers, self._rank = model, layers, rank
        self._constants: dict[int, F32] = {}

    def pairs(self, key: str) -> Generator[None, None, dict[int, LowRank]]:
        """See `LayeredHost`. The same key gives the same pairs."""
        if not self._constants:
            self._constants = self._measure()
            yield
        d = self._model.hidden_dim
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        pairs = {}
        for layer in self._layers:
            rows = rng.standard_normal((self._rank, d)) * (_RANDOM_GAIN / np.sqrt(d))
            rows[0] = self._constants[layer]
            pairs[layer] = LowRank(rows.astype(np.float32), np.zeros((d, self._rank), np.float32))
        return pairs

    def _measure(self) -> dict[int, F32]:
        """Layer -> the row whose product with its states is nearly constant, and as large as their usual size. The
        size is the median over tokens: a few tokens, like the first, have states a hundred times as long.
        """
        model = self._model
        try:
            lead, rest = reference_ids(model.tokenizer, model.context)
        except ValueError as error:
            raise HostError(f"initial_layers: {error}") from error
        hooks = model.require_hooks()
        with hooks.watching() as seen:
            model.prefill(torch.tensor([lead + rest]), model.new_cache())
        constants = {}
        for layer in self._layers:
            states = seen[layer][0, len(lead) :].double()
            size = float(states.square().mean(1).sqrt().median())
            constants[layer] = np.float32(size) * constant_row(states)
        return constants
