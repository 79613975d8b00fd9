"""Fits what the memory's gate goes by: `sona_stream.engine.memory.comparison`.

Rule. Of the stored questions the nearest by the contextual encoder is taken; a logistic regression (ridge, by
Newton's method) tells the pairs that are one question from those that are not. Positive: a paraphrase and its own
question; negative: what lies nearest to a near miss, to a prompt of the same form and to an unrelated one, and
wrong neighbours of paraphrases. All count alike. The threshold comes from five-fold
cross-validation by families: the lowest log odds at which at most 4 % of the near misses act, 1 % of the prompts of
the same form and no unrelated one, the median of `REPEATS` draws of the folds. Everything is of the fit half and of
`gate_training.jsonl`; the other half is not read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sona_stream.engine.memory import comparison as rules
from sona_stream.engine.memory.words import Features, Reader

from .asking import Asked, Kind, Stored
from .gating import Encoders

__all__ = [
    "Fitted",
    "Met",
    "Pairs",
    "cross_validated",
    "fit",
    "joined",
    "met",
    "pairs",
    "recall",
    "regression",
    "threshold",
]

F64 = NDArray[np.float64]
RIDGE, FOLDS, REPEATS = 3.0, 5, 20
MOST_ACTING: dict[Kind, float] = {"near_miss": 0.04, "same_form": 0.01, "unrelated": 0.0}


@dataclasses.dataclass(frozen=True, slots=True)
class Pairs:
    """Questions asked, each with a stored one."""

    evidence: F64
    """(n, m) in the order of `comparison.WEIGHTS`"""
    vetoed: NDArray[np.bool_]
    same: NDArray[np.bool_]
    """whether both are one question"""
    nearest: NDArray[np.bool_]
    """whether the stored one is the nearest: what is decided on"""
    asked: tuple[Asked, ...]

    def where(self, chosen: NDArray[np.bool_]) -> Pairs:
        """Some of them."""
        some = tuple(one for one, is_in in zip(self.asked, chosen, strict=True) if is_in)
        return Pairs(self.evidence[chosen], self.vetoed[chosen], self.same[chosen], self.nearest[chosen], some)

    def kinds(self, *kinds: Kind) -> NDArray[np.bool_]:
        """Which are of these."""
        return np.array([one.kind in kinds for one in self.asked])


@dataclasses.dataclass(frozen=True, slots=True)
class Fitted:
    """Log odds are ``weights @ evidence + bias``."""

    weights: F64
    bias: float

    def odds(self, pairs: Pairs) -> F64:
        """(n,)"""
        return np.where(pairs.vetoed, -np.inf, pairs.evidence @ self.weights + self.bias)


@dataclasses.dataclass(frozen=True, slots=True)
class Met:
    """A question asked and a stored one."""

    asked: Asked
    words: Features
    stored: Features
    cosine: float
    lead: float
    same: bool
    nearest: bool


def met(encoders: Encoders, corrections: Sequence[Stored], questions: Sequence[Asked]) -> Iterator[Met]:
    """Each question with the nearest stored one, and a paraphrase with its own where that is another."""
    reader, place = Reader(b"fit"), {one.id: i for i, one in enumerate(corrections)}
    stored = np.stack([v.contextual for v in encoders.vectors([one.text for one in corrections])])
    vectors = np.stack([v.contextual for v in encoders.vectors([one.text for one in questions])])
    features = [reader.read(one.text) for one in corrections]
    for one, cosines in zip(questions, vectors @ stored.T, strict=True):
        words, first = reader.read(one.text), int(cosines.argmax())
        for at in {first, place.get(one.meant, first)}:
            lead = float(cosines[at] - max(np.delete(cosines, at).max(), rules.LEAST_RIVAL))
            same = corrections[at].id == one.meant
            yield Met(one, words, features[at], float(cosines[at]), lead, same, at == first)


def pairs(encoders: Encoders, corrections: Sequence[Stored], questions: Sequence[Asked]) -> Pairs:
    """All that `met` finds."""
    found = list(met(encoders, corrections, questions))
    differ = [rules.differences(one.words, one.stored) for one in found]
    evidence = [
        rules.evidence(one.words, one.stored, one.cosine, one.lead, names)
        for one, names in zip(found, differ, strict=True)
    ]
    return Pairs(
        np.array(evidence),
        np.array([bool(names & rules.VETOES) for names in differ]),
        np.array([one.same for one in found]),
        np.array([one.nearest for one in found]),
        tuple(one.asked for one in found),
    )


def fit(pairs: Pairs) -> Fitted:
    """Ridge on standardised evidence. Situations and the stored wordings themselves teach nothing."""
    used = pairs.where(~pairs.vetoed & pairs.kinds("paraphrase", "near_miss", "same_form", "unrelated"))
    return regression(used.evidence, used.same, RIDGE)


def regression(evidence: F64, same: NDArray[np.bool_], penalty: float) -> Fitted:
    """Logistic, with a ridge on standardised evidence (n, m); the intercept is free."""
    mean, spread = evidence.mean(0), evidence.std(0) + 1e-6
    inputs = np.column_stack(((evidence - mean) / spread, np.ones(len(same))))
    ridge = np.append(np.full(len(mean), penalty), 0.0)
    found = np.zeros(len(ridge))
    for _ in range(100):
        likely = 1 / (1 + np.exp(-np.clip(inputs @ found, -30, 30)))
        slope = inputs.T @ (likely - same) + ridge * found
        curve = (inputs * (likely * (1 - likely) + 1e-9)[:, None]).T @ inputs + np.diag(ridge)
        step = np.linalg.solve(curve, slope)
        found -= step
        if np.abs(step).max() < 1e-8:
            break
    weights = found[:-1] / spread
    return Fitted(weights, float(found[-1] - weights @ mean))


def cross_validated(fitting: Pairs, more: Pairs) -> F64:
    """(REPEATS, n) log odds of `fitting`, each from a fit without its family; `more` is always fitted on."""
    families = sorted({one.family for one in fitting.asked})
    out = np.empty((REPEATS, len(fitting.asked)))
    for repeat in range(REPEATS):
        fold = dict(zip(np.random.default_rng(repeat).permutation(families), np.arange(len(families)), strict=True))
        of = np.array([fold[one.family] % FOLDS for one in fitting.asked])
        for held in range(FOLDS):
            found = fit(joined(fitting.where(of != held), more))
            out[repeat, of == held] = found.odds(fitting.where(of == held))
    return out


def joined(a: Pairs, b: Pairs) -> Pairs:
    """Both."""
    names = ("evidence", "vetoed", "same", "nearest")
    return Pairs(*(np.concatenate((getattr(a, name), getattr(b, name))) for name in names), a.asked + b.asked)


def threshold(fitting: Pairs, odds: F64) -> float:
    """Lowest log odds (n,) at which no more act than may."""
    for at in np.sort(odds[np.isfinite(odds)]):
        acting = fitting.nearest & (odds > at)
        if all(acting[fitting.kinds(kind)].mean() <= most for kind, most in MOST_ACTING.items()):
            return float(at)
    raise ValueError("no threshold keeps what must be kept")


def recall(fitting: Pairs, odds: F64, at: float, kind: Kind = "paraphrase") -> float:
    """Share of the paraphrases on which the right one acts."""
    chosen = fitting.nearest & fitting.kinds(kind)
    return float((fitting.same & (odds > at))[chosen].mean())
