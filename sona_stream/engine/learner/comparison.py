"""Adapter versions in numbers for people: what one is, and how two differ."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...lora import AdapterRecord, Capture, LoraWeights, LowRank

__all__ = ["compare", "cosine", "describe", "norm", "unadapted"]


def describe(record: AdapterRecord, *, served: bool, nbytes: int | None = None) -> dict[str, Any]:
    """One version as plain values, without weights. ``nbytes``: what it takes where `record` comes without them."""
    return {
        "key": record.key,
        "version": record.version,
        "parent": record.parent,
        "status": record.status,
        "served": served,
        "reason": record.reason,
        "metrics": dict(record.metrics),
        "feedback": len(record.feedback_ids),
        "bytes": record.weights.nbytes if nbytes is None else nbytes,
        "fingerprint": record.fingerprint,
        "created_at": record.created_at,
    }


def unadapted(like: LoraWeights) -> LoraWeights:
    """The base model as an adapter of the same shape that changes nothing."""
    return LoraWeights(dataclasses.replace(like.micro, lora_B=np.zeros_like(like.micro.lora_B)))


def norm(weights: LoraWeights) -> float:
    """Frobenius norm of the whole change B A (d, d), which is never formed; layers count beside it."""
    return math.sqrt(max(0.0, _product(weights, weights)))


def cosine(one: LoraWeights, other: LoraWeights) -> float | None:
    """Of the two changes as vectors; None when one of them is nothing."""
    sizes = norm(one) * norm(other)
    return max(-1.0, min(1.0, _product(one, other) / sizes)) if sizes > 0 else None


def compare(one: LoraWeights, other: LoraWeights, captures: Sequence[Capture]) -> dict[str, Any]:
    """Norms of both changes and of their difference, their cosine, and how far apart they put the hidden states of
    these answers, relative to the states (None where no states are at hand).
    """
    product = _product(one, other)
    difference = math.sqrt(max(0.0, norm(one) ** 2 + norm(other) ** 2 - 2.0 * product))
    found = cosine(one, other)
    held = [capture.hidden for capture in captures if len(capture) and capture.hidden.shape[0]]
    apart = None
    if held:
        hidden = np.concatenate(held)
        gap = np.linalg.norm(other.delta(hidden) - one.delta(hidden), axis=1)
        apart = float(np.mean(gap / np.maximum(np.linalg.norm(hidden, axis=1), 1e-12)))
    return {
        "norms": [norm(one), norm(other)],
        "norm_of_difference": difference,
        "cosine": found,
        "hidden_state_difference": apart,
        "answers": len(captures),
    }


def _product(one: LoraWeights, other: LoraWeights) -> float:
    """<B1 A1, B2 A2> = sum of (B1^T B2) * (A1 A2^T), over all pairs of both."""
    return float(
        sum(
            a.scaling * b.scaling * np.sum(_inner(a.lora_B.T, b.lora_B.T) * _inner(a.lora_A, b.lora_A))
            for place in (None, *one.layers)
            for a in _pairs(one, place)
            for b in _pairs(other, place)
        )
    )


def _inner(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(r, d), (q, d) -> (r, q)."""
    return np.asarray(one.astype(np.float64) @ other.astype(np.float64).T)


def _pairs(weights: LoraWeights, layer: int | None) -> list[LowRank]:
    """Those that change the same states: the final ones, or a layer's."""
    there = (weights.micro, weights.base) if layer is None else (weights.layers.get(layer),)
    return [pair for pair in there if pair is not None]
