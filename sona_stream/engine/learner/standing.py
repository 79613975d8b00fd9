"""Whether a finer level of the key chain serves by itself, or its coarser one goes on serving in its place.

A pattern type has fewer lessons than its tenant. Where all of them say the same, its own fit is the poorer one;
where the type is liked otherwise, everybody's fit is the wrong one. The lessons tell which: each rating of the
level is foretold from the *other* lessons (leave one out), once from the level's own and once from all of the
coarser level's, in the linear approximation that `evidence` tests, too:

    foretold_i = s_i^T M^-1 sum_{j != i} a_j s_j

and the level serves when its own lessons foretell its ratings better (by Pearson's correlation).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...lora import F32, Spectrum

__all__ = ["FEWEST", "foretold"]

FEWEST = 8
"""Ratings below which nothing is foretold"""

F64 = NDArray[np.float64]


def foretold(
    advantages: Sequence[float], scores: Sequence[F32], own: Sequence[bool], metric: Spectrum, ridge: float
) -> tuple[float, float]:
    """Correlation of the ``own`` ratings among n with what own lessons foretell, and with what all do; `scores` are
    n rows (d,), see `evidence`. Each is 0 where it is not defined.
    """
    a, rows, mask = np.asarray(advantages, np.float64), np.stack(scores), np.asarray(own)
    return (
        _correlation(a[mask], _foretelling(a[mask], rows[mask], metric, ridge)),
        _correlation(a[mask], _foretelling(a, rows, metric, ridge)[mask]),
    )


def _foretelling(a: F64, rows: F32, metric: Spectrum, ridge: float) -> F64:
    centred = (rows - rows.mean(axis=0)).astype(np.float64)
    gram = centred @ metric.solve(centred.T.astype(np.float32), ridge)
    np.fill_diagonal(gram, 0.0)
    return np.asarray(gram @ (a - a.mean()))


def _correlation(one: F64, other: F64) -> float:
    one, other = one - one.mean(), other - other.mean()
    length = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / length if length > 0 else 0.0
