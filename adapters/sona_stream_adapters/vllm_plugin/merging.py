"""Results over parts of the captures, put together as if one worker had seen all of them at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from sona_stream.lora import F32, Curvature, Evaluation, LoraGradient

__all__ = ["merge_curvatures", "merge_evaluations", "merge_gradients", "merge_kls"]


def merge_gradients(parts: Sequence[LoraGradient]) -> LoraGradient:
    """Gradients, Fisher sums and losses are sums over tokens; the two means are weighted by tokens."""
    if len(parts) == 1:
        return parts[0]
    weights = [part.tokens for part in parts]
    micro_A, micro_B = _sum([part.micro_A for part in parts]), _sum([part.micro_B for part in parts])
    assert micro_A is not None
    assert micro_B is not None
    return LoraGradient(
        micro_A=micro_A,
        micro_B=micro_B,
        base_A=_sum([part.base_A for part in parts]),
        base_B=_sum([part.base_B for part in parts]),
        tokens=sum(weights),
        loss=math.fsum(part.loss for part in parts),
        mean_kl_to_base=_mean([part.mean_kl_to_base for part in parts], weights),
        mean_logprob=_mean([part.mean_logprob for part in parts], weights),
        fisher_A=_sum([part.fisher_A for part in parts]),
        fisher_B=_sum([part.fisher_B for part in parts]),
    )


def merge_curvatures(parts: Sequence[Curvature], places: Sequence[Sequence[int]]) -> Curvature:
    """That of the part with the most tokens, for eigenpairs do not add up; ``scores`` of all, in their places."""
    if len(parts) == 1:
        return parts[0]
    scores = np.zeros((sum(map(len, places)), parts[0].constant.shape[0]), np.float32)
    for part, rows in zip(parts, places, strict=True):
        scores[list(rows)] = part.scores
    largest = max(parts, key=lambda part: part.tokens)
    return dataclasses.replace(largest, scores=scores)


def merge_evaluations(parts: Sequence[Evaluation]) -> Evaluation:
    """Rows one after another; means weighted by tokens, the greatest of the maxima."""
    if len(parts) == 1:
        return parts[0]
    weights = [sum(len(row) for row in part.logprobs) for part in parts]
    return Evaluation(
        mean_kl_to_base=_mean([part.mean_kl_to_base for part in parts], weights),
        max_kl_to_base=max(part.max_kl_to_base for part in parts),
        logprobs=[row for part in parts for row in part.logprobs],
        base_logprobs=[row for part in parts for row in part.base_logprobs],
        mean_delta_ratio=_mean([part.mean_delta_ratio for part in parts], weights),
        max_delta_ratio=max(part.max_delta_ratio for part in parts),
        finite=all(part.finite for part in parts),
        collision=_mean_told([part.collision for part in parts], weights),
        base_collision=_mean_told([part.base_collision for part in parts], weights),
        repeat_mass=_mean_told([part.repeat_mass for part in parts], weights),
        base_repeat_mass=_mean_told([part.base_repeat_mass for part in parts], weights),
    )


def merge_kls(kls: Sequence[float], tokens: Sequence[int]) -> float:
    """Means over tokens, weighted by tokens."""
    return _mean(kls, tokens)


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    total = max(sum(weights), 1)
    return math.fsum(value * weight for value, weight in zip(values, weights, strict=True)) / total


def _mean_told(values: Sequence[float | None], weights: Sequence[int]) -> float | None:
    """None where any part does not say."""
    told = [value for value in values if value is not None]
    return _mean(told, weights) if len(told) == len(values) else None


def _sum(parts: Sequence[F32 | None]) -> F32 | None:
    known = [part for part in parts if part is not None]
    return np.asarray(np.sum(known, axis=0, dtype=np.float64), np.float32) if known else None
