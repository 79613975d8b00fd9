"""How much of what recent judgements say is signal, and how far it may therefore move the adapter.

Each judged answer pulls the adapter somewhere. If judgements mean something, the pulls g_i agree and their sum is
longer than chance allows; if they are noise, |sum g_i|^2 is about sum |g_i|^2. The share of the squared length that
chance does not explain is the positive-part James-Stein factor for their mean (James & Stein 1961):

    support = max(0, 1 - sum |g_i|^2 / |sum g_i|^2)

over a window that forgets. From a half on steps are taken in full, below it they shorten with it, to nothing where
there is only chance. Ratings permuted across answers stay near 0, a preference reaches 0.6 to 0.9 within some 30
ratings; once it is learned its pulls cancel, and the adapter rests.
"""

from __future__ import annotations

import numpy as np

from ...lora import LoraGradient
from .optimiser import Moments

__all__ = ["noted", "support", "trust"]

_KEEP = 0.98  # a window of about 50 judgements
_FIRST = 8  # before so many judgements every one counts in full
_ENOUGH = 0.5


def noted(moments: Moments, gradient: LoraGradient) -> Moments:
    """The moments with one more answer's pull on B, each entry in units of its own root mean square."""
    root = np.sqrt(moments["v_B"])
    pull = gradient.micro_B / np.where(root > 0, root, 1.0)
    total = _KEEP * moments.get("pull_sum", np.zeros_like(pull)) + pull
    square = _KEEP**2 * _number(moments, "pull_square") + float(np.sum(np.square(pull, dtype=np.float64)))
    return {
        **moments,
        "pull_sum": total.astype(np.float32),
        "pull_square": np.asarray([square], dtype=np.float32),
        "pull_count": np.asarray([_number(moments, "pull_count") + 1], dtype=np.float32),
    }


def support(moments: Moments) -> float:
    """In [0, 1]; 1 while there are too few judgements to tell."""
    if _number(moments, "pull_count") < _FIRST:
        return 1.0
    length = float(np.sum(np.square(moments["pull_sum"], dtype=np.float64)))
    return max(0.0, 1.0 - _number(moments, "pull_square") / length) if length > 0 else 0.0


def trust(moments: Moments) -> float:
    """What a step's length is multiplied with, in [0, 1]."""
    return min(1.0, support(moments) / _ENOUGH)


def _number(moments: Moments, name: str) -> float:
    return float(moments[name][0]) if name in moments else 0.0
