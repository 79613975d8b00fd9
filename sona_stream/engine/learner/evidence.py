"""Whether ratings are about the answers at all, and how much of what was learned from them is served.

Ratings are few and noisy, and a rank-2 pair has thousands of entries: a fit follows meaningless ratings as
willingly as meaningful ones. So every replay first asks whether answers that pull the policy the same way were
rated alike:

    T = sum_{i != j} a_i a_j s_i^T M^-1 s_j      s_i = mean over tokens of d log p(y_t) / d h_t, centred

a_i the advantage, M the policy's curvature. T / n^2 is the squared length of the natural gradient less each
answer's agreement with itself: a kernel test of independence (HSIC: Gretton et al. 2007,
https://papers.nips.cc/paper/3201-a-kernel-statistical-test-of-independence). Shuffled ratings give its mean and
spread when there is nothing to learn, whatever the answers were, so ``z`` needs no model of either.

Answers that pull the same way are few among a hundred, so the same is asked of another likeness, which shows what
most preferences are about sooner: how often the common tokens occur (the end, a line break, "you"), and the length.
``z`` is the larger one. On three preferences it was 3 to 7 after 32 ratings, where the first alone was about 1.

The share of the fit that is served is z^4 / (z^4 + 3^4) of the way from a floor to 1: at three standard deviations
half of it, at one a hundredth. A fit to meaningless ratings drifts as far as one to meaningful ones, and KL grows
with the square of the share. The fit itself goes on at full length behind it. The floor is ``least`` for ratings
and 1 for corrections, which say what is wanted instead of hinting at it; in between where both came.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from ...lora import F32, I32, Spectrum

__all__ = ["Evidence", "dependence", "trust_of"]

_HALF, _POWER = 3.0, 4
_FEWEST = 8
_SHUFFLES = 400
_COMMON = 32
"""Tokens that are counted, those of most answers first"""
_SPARED = 0.08
"""Share of answers that must hold a token, and that must not: others tell few answers apart."""
_LEAST_SPREAD = 1e-9
_NAME, _TRUST = "evidence", "trust"


F64 = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """What the last test of one adapter key said, and how many lessons of each kind the key had."""

    z: float = 0.0
    """standard deviations above what shuffled ratings give; 0 before any test"""
    ratings: float = 0.0
    corrections: float = 0.0

    def trust(self, least: float) -> float:
        """Share of the adapter to serve, in [least, 1]."""
        taught = self.ratings + self.corrections
        floor = (least * self.ratings + self.corrections) / taught if taught else least
        support = (max(self.z, 0.0) / _HALF) ** _POWER
        return floor + (1.0 - floor) * support / (support + 1.0)

    @property
    def freedom(self) -> float:
        """Share of a full step that the less certain parts of a fit may take, in [0, 1]."""
        return self.trust(0.0)

    def counting(self, *, correction: bool) -> Evidence:
        """After one more lesson, which no test has seen yet."""
        if correction:
            return dataclasses.replace(self, corrections=self.corrections + 1)
        return dataclasses.replace(self, ratings=self.ratings + 1)

    @classmethod
    def of(cls, moments: Mapping[str, F32]) -> Evidence:
        """As an `AdapterRecord` keeps it among its moments; none there: nothing was tested."""
        return cls(*map(float, moments[_NAME])) if _NAME in moments else cls()

    def beside(self, moments: Mapping[str, F32], trust: float) -> dict[str, F32]:
        """These moments with this evidence, and the share that was served on it."""
        values = np.asarray(dataclasses.astuple(self), dtype=np.float32)
        return {**moments, _NAME: values, _TRUST: np.asarray([trust], dtype=np.float32)}


def trust_of(moments: Mapping[str, F32]) -> float:
    """The share that a version serves; 1 where none was kept."""
    return float(moments[_TRUST][0]) if _TRUST in moments else 1.0


def dependence(
    advantages: Sequence[float], scores: Sequence[F32], tokens: Sequence[I32], metric: Spectrum, ridge: float
) -> float:
    """``z`` of n judged answers; `scores` are n rows (d,), `tokens` their ids. 0 for fewer than 8 answers and for
    equal ratings.
    """
    n = len(advantages)
    if n < _FEWEST:
        return 0.0
    a = np.asarray(advantages, dtype=np.float64)
    a -= a.mean()
    rows = np.stack(scores).astype(np.float64)
    rows -= rows.mean(axis=0)
    counts = _counts(tokens)
    shuffled = np.random.default_rng(n).permuted(np.broadcast_to(a, (_SHUFFLES, n)), axis=1)
    likenesses = (rows @ metric.solve(rows.T.astype(np.float32), ridge), counts @ counts.T)
    return max(_agreement(gram, a, shuffled) for gram in likenesses)


def _agreement(gram: F64, a: F64, shuffled: F64) -> float:
    """Standard deviations above the shuffled ratings'."""
    np.fill_diagonal(gram, 0.0)
    null = np.sum((shuffled @ gram) * shuffled, axis=1)
    spread = float(null.std())
    return float((a @ gram @ a - null.mean()) / spread) if spread > 0 else 0.0


def _counts(answers: Sequence[I32]) -> F64:
    """(n, k) logarithms of how often each common token occurs, and the length; columns standardised."""
    held = Counter(chain.from_iterable(set(ids.tolist()) for ids in answers))
    n = len(answers)
    telling = [token for token, of in held.most_common() if _SPARED * n <= of <= (1 - _SPARED) * n][:_COMMON]
    lengths = np.array([len(ids) for ids in answers])
    found = np.column_stack([_occurrences(answers, lengths, telling), lengths]).astype(np.float64)
    found = np.log1p(found)
    found -= found.mean(axis=0)
    return np.asarray(found / np.maximum(found.std(axis=0), _LEAST_SPREAD))


def _occurrences(answers: Sequence[I32], lengths: NDArray[np.int64], tokens: Sequence[int]) -> NDArray[np.int64]:
    """(n, k) how often each of these different tokens occurs in each answer, in one pass over all of them."""
    n, k = len(answers), len(tokens)
    if not k:
        return np.zeros((n, 0), dtype=np.int64)
    order = np.argsort(tokens)
    ascending = np.asarray(tokens)[order]
    ids = np.concatenate(answers)
    place = np.minimum(np.searchsorted(ascending, ids), k - 1)
    found = ascending[place] == ids
    cells = np.repeat(np.arange(n), lengths)[found] * k + order[place[found]]
    return np.bincount(cells, minlength=n * k).reshape(n, k)
