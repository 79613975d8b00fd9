"""Whether what an adapter learned holds on answers it has not seen, and how much of it is served.

Ratings are few and noisy, and a rank-2 pair has thousands of entries: a fit follows meaningless ratings as
willingly as meaningful ones. So every replay first tests what the replay before it found, on the answers that came
since. An answer rated above expectation should have become likelier, one rated below less likely:

    x_i = a_i (g_i - mean g)      g_i = mean over tokens of log p(y_t) - log p_base(y_t)
    t   = sum x_i / sqrt(sum x_i^2)

a_i the advantage, the mean over the answers tested together; a correction has x_i = g_i. When ratings do not depend
on the answers, t has mean 0 and spread 1 whatever the adapter (a self-normalised sum: de la Peña, Lai and Shao,
Self-Normalized Processes, 2009). Prequential: Dawid, Statistical Theory: The Prequential Approach, 1984.

The share of the fit that is served is t^2 / (t^2 + 4) of the way from a floor to 1: at two standard deviations half
of it. The fit itself goes on at full length behind it. The floor is ``least`` for ratings and 1 for corrections,
which say what is wanted instead of hinting at it; in between where both came.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ...lora import F32

__all__ = ["Evidence", "agreements", "trust_of"]

_HALF = 4.0
_NAME, _TRUST = "evidence", "trust"


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """The sums so far over all answers that tested one adapter key, and how many lessons of each kind it had."""

    products: float = 0.0
    squares: float = 0.0
    ratings: float = 0.0
    corrections: float = 0.0

    @property
    def t(self) -> float:
        """In standard deviations; 0 before any test."""
        return self.products / math.sqrt(self.squares) if self.squares > 0 else 0.0

    def trust(self, least: float) -> float:
        """Share of the adapter to serve, in [least, 1]."""
        taught = self.ratings + self.corrections
        floor = (least * self.ratings + self.corrections) / taught if taught else least
        support = max(self.t, 0.0) ** 2
        return floor + (1.0 - floor) * support / (support + _HALF)

    def counting(self, *, correction: bool) -> Evidence:
        """After one more lesson, which it has not been tested on."""
        if correction:
            return dataclasses.replace(self, corrections=self.corrections + 1)
        return dataclasses.replace(self, ratings=self.ratings + 1)

    def plus(self, products: Sequence[float]) -> Evidence:
        """With more x_i."""
        return dataclasses.replace(
            self,
            products=self.products + math.fsum(products),
            squares=self.squares + math.fsum(x * x for x in products),
        )

    @classmethod
    def of(cls, moments: Mapping[str, F32]) -> Evidence:
        """As an `AdapterRecord` keeps it among its moments; none there: nothing was tested."""
        return cls(*map(float, moments[_NAME])) if _NAME in moments else cls()

    def beside(self, moments: Mapping[str, F32], trust: float) -> dict[str, F32]:
        """These moments with this evidence, and the share that was served on it."""
        sums = np.asarray(dataclasses.astuple(self), dtype=np.float32)
        return {**moments, _NAME: sums, _TRUST: np.asarray([trust], dtype=np.float32)}


def trust_of(moments: Mapping[str, F32]) -> float:
    """The share that a version serves; 1 where none was kept."""
    return float(moments[_TRUST][0]) if _TRUST in moments else 1.0


def agreements(advantages: Sequence[float | None], gains: Sequence[float]) -> list[float]:
    """The x_i of answers tested together; None: a correction. One judged answer alone has no mean to differ from
    and gives none.
    """
    judged = [gain for advantage, gain in zip(advantages, gains, strict=True) if advantage is not None]
    mean = math.fsum(judged) / len(judged) if judged else 0.0
    return [
        gain if advantage is None else advantage * (gain - mean)
        for advantage, gain in zip(advantages, gains, strict=True)
        if advantage is None or len(judged) > 1
    ]
