"""Fits what the memory's gate goes by where only small words differ: `sona_stream.engine.memory.small_words`.

Rule. A logistic regression (ridge, by Newton's method) on all pairs of the same words, of the part of
`small_words.jsonl` that is for fitting, of the fit half and of `gate_training.jsonl`; all count alike. The
threshold comes from five-fold cross-validation by base questions: the lowest log odds at which at most 1 % of the
harmful ones act that are judged so, the median of `REPEATS` draws of the folds. The part for reporting is not read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sona_stream.engine.memory import comparison as rules

from .asking import Asked, Kind
from .gate_fit import F64, FOLDS, REPEATS, Fitted, Met, regression

__all__ = ["Changes", "changes", "cross_validated", "fit", "share", "threshold"]

RIDGE = 2.0
MOST_ACTING = 0.01


@dataclasses.dataclass(frozen=True, slots=True)
class Changes:
    """Questions asked, each with a stored one."""

    values: F64
    """(n, m) in the order of `small_words.WEIGHTS`; zeros where others judge"""
    judged: NDArray[np.bool_]
    """whether only small words differ"""
    otherwise: NDArray[np.bool_]
    """whether they act where others judge"""
    same: NDArray[np.bool_]
    nearest: NDArray[np.bool_]
    asked: tuple[Asked, ...]

    def kind(self, kind: Kind) -> NDArray[np.bool_]:
        """Which are of this."""
        return np.array([one.kind == kind for one in self.asked])


def changes(found: Sequence[Met]) -> Changes:
    """Of all pairs."""
    values, otherwise = [], []
    for one in found:
        differ = rules.differences(one.words, one.stored)
        odds = rules.regressed(one.words, one.stored, one.cosine, one.lead, differ)
        exact = rules.nearly_exact(one.words, one.stored)
        small = None if exact or differ & rules.VETOES else rules.changed(one.words, one.stored, one.cosine, odds)
        values.append(small)
        otherwise.append(exact or (not differ & rules.VETOES and odds > 0))
    size = max(len(one) for one in values if one is not None)
    return Changes(
        np.array([[0.0] * size if one is None else one for one in values]),
        np.array([one is not None for one in values]),
        np.array(otherwise),
        np.array([one.same for one in found]),
        np.array([one.nearest for one in found]),
        tuple(one.asked for one in found),
    )


def fit(found: Changes, chosen: NDArray[np.bool_] | None = None) -> Fitted:
    """On what is judged so; chosen: (n,) of it."""
    used = found.judged & np.array([one.kind not in ("own", "situation") for one in found.asked])
    used = used if chosen is None else used & chosen
    return regression(found.values[used], found.same[used], RIDGE)


def cross_validated(found: Changes) -> F64:
    """(REPEATS, n) log odds, each from a fit without its base question's family."""
    families = sorted({one.family for one in found.asked})
    out = np.empty((REPEATS, len(found.asked)))
    for repeat in range(REPEATS):
        drawn = np.random.default_rng(repeat).permutation(families)
        fold = dict(zip(drawn, np.arange(len(families)) % FOLDS, strict=True))
        of = np.array([fold[one.family] for one in found.asked])
        for held in range(FOLDS):
            fitted = fit(found, of != held)
            out[repeat, of == held] = found.values[of == held] @ fitted.weights + fitted.bias
    return out


def threshold(found: Changes, odds: F64) -> float:
    """Lowest log odds (n,) at which no more harmful ones act than may."""
    harmful = found.judged & found.kind("harmful") & ~found.same
    there = np.sort(odds[harmful])
    return float(there[len(there) - 1 - int(MOST_ACTING * len(there))])


def share(found: Changes, odds: F64, at: float, kind: Kind) -> float:
    """Of the questions of this kind, those on which an episode acts."""
    chosen = found.nearest & found.kind(kind)
    return float(np.where(found.judged, odds > at, found.otherwise)[chosen].mean())
