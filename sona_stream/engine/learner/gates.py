"""What a new version must pass before it is served."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ...lora import F32, Evaluation, LoraWeights

__all__ = ["Limits", "Verdict", "judge"]


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Bounds, in the units of `LearningSettings`."""

    max_kl_to_base: float
    max_delta_ratio: float
    max_logprob_drop: float


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """`gate` names the first bound that was passed ("" when none was); `metrics` what was measured."""

    gate: str
    reason: str
    metrics: dict[str, float]

    @property
    def ok(self) -> bool:
        """Whether the version may be served."""
        return not self.gate


def judge(
    weights: LoraWeights,
    evaluation: Evaluation,
    accepted: Sequence[bool],
    limits: Limits,
) -> Verdict:
    """`evaluation` is of `weights` on a sample of lessons; `accepted` says which of those answers were good.

    Checked in this order: finite; mean |h' - h| / |h|; mean KL(p || p_base) per token; the fall of the accepted
    answers' mean log-likelihood per token against the base model.
    """
    drop = _drop(evaluation, accepted)
    metrics = {
        "mean_kl_to_base": evaluation.mean_kl_to_base,
        "max_kl_to_base": evaluation.max_kl_to_base,
        "mean_delta_ratio": evaluation.mean_delta_ratio,
        "accepted_logprob_drop": drop,
    }
    if not (weights.is_finite() and evaluation.finite and all(np.isfinite(list(metrics.values())))):
        return Verdict("finite", "not finite", {})
    for gate, name, limit in (
        ("delta_ratio", "mean_delta_ratio", limits.max_delta_ratio),
        ("kl_to_base", "mean_kl_to_base", limits.max_kl_to_base),
        ("logprob_drop", "accepted_logprob_drop", limits.max_logprob_drop),
    ):
        if metrics[name] > limit:
            return Verdict(gate, f"{name} {metrics[name]:.4g} is above {limit:g}", metrics)
    return Verdict("", "", metrics)


def _drop(evaluation: Evaluation, accepted: Sequence[bool]) -> float:
    """Base minus adapted log-likelihood, mean over all tokens of accepted answers; 0 when there are none."""
    now = _joined(evaluation.logprobs, accepted)
    base = _joined(evaluation.base_logprobs, accepted)
    return float(np.mean(base - now)) if now.size else 0.0


def _joined(rows: Sequence[F32], chosen: Sequence[bool]) -> F32:
    kept = [row for row, take in zip(rows, chosen, strict=True) if take]
    return np.concatenate(kept) if kept else np.zeros(0, dtype=np.float32)
