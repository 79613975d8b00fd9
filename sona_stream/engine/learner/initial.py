"""The adapter at birth: it changes nothing (B = 0), but it can push a constant direction.

A random row of A cannot: its product with h changes sign from token to token. The mean hidden state can, poorly: a
few large entries of h vary so much that its product with other answers' states is anywhere between 0 and 1. A ridge
regression of 1 on the states gives 1 within a tenth. The first row is the one of 1 on these states and of 0 on a
text from elsewhere (see `elsewhere`), which a bias for answers alone is made of; the second is the one of 1 on
these states, wherever they lie. The others are small and random. A few states are told from the text by what only
they have: the first row is not there then.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from ...lora import Curvature, LoraWeights, LowRank

__all__ = ["initial_weights"]

_FEWEST = 256  # tokens
_RANDOM_GAIN = 0.5  # standard deviation of A h on the random rows, against 1 on the first


def initial_weights(
    curvature: Curvature, rank: int, key: str, layers: Mapping[int, LowRank] | None = None
) -> LoraWeights:
    """`curvature` is of the lessons that are there at birth. The key seeds the random rows: births repeat.
    `layers`: the host's `initial_layers`.
    """
    d = curvature.constant.shape[0]
    rows = np.random.default_rng(zlib.crc32(key.encode())).standard_normal((rank, d))
    rows *= _RANDOM_GAIN / (max(curvature.rms, 1e-12) * np.sqrt(d))
    contrast = curvature.contrast if curvature.tokens >= _FEWEST else None
    known = [row for row in (contrast, curvature.constant) if row is not None][:rank]
    rows[: len(known)] = known
    micro = LowRank(rows.astype(np.float32), np.zeros((d, rank), dtype=np.float32))
    return LoraWeights(micro, layers=dict(layers or {}))
