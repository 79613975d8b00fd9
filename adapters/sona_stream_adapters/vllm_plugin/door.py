"""What is checked before anything that came from outside is used."""

from __future__ import annotations

import numpy as np

from sona_stream.errors import HostError
from sona_stream.lora import F32, LoraWeights

from ..head import check_weights
from .codec import Arrays, CodecError, Facts, unpack, weights_from
from .refusal import Refusal

__all__ = ["check_fingerprint", "checked_name", "checked_states", "checked_weights", "opened"]

_LARGEST = 1e9
"""of a factor's entries: products with hidden states stay far from the end of float32"""
_LONGEST_NAME = 512


def opened(blob: object, what: str) -> tuple[Arrays, Facts]:
    """Raises Refusal when `blob` is no safetensors file; `what` names it."""
    if not isinstance(blob, bytes | bytearray | memoryview):
        raise Refusal(f"{what}: expected safetensors bytes, not {type(blob).__name__}")
    try:
        return unpack(bytes(blob))
    except CodecError as error:
        raise Refusal(f"{what}: {error}") from error


def checked_name(name: object, what: str) -> str:
    """Raises Refusal."""
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
        raise Refusal(f"{what}: expected a name of 1 to {_LONGEST_NAME} characters, not {name!r:.80}")
    return name


def checked_weights(arrays: Arrays, facts: Facts, hidden_dim: int, max_rank: int, prefix: str = "") -> LoraWeights:
    """Raises Refusal naming the factor and the limit."""
    try:
        weights = weights_from(arrays, facts, prefix)
        check_weights(weights, hidden_dim)
    except (CodecError, HostError) as error:
        raise Refusal(f"adapter: {error}") from error
    pairs = {"micro": weights.micro} | ({} if weights.base is None else {"base": weights.base})
    rank = sum(pair.lora_A.shape[0] for pair in pairs.values())
    if rank > max_rank:
        raise Refusal(f"adapter: rank {rank} of micro and base together is more than SONA_VLLM_MAX_RANK={max_rank}")
    for name, pair in pairs.items():
        with np.errstate(over="ignore"):
            factors = (pair.lora_A, pair.lora_B, pair.lora_B * np.float32(pair.scaling))
        largest = max(float(np.abs(factor).max()) for factor in factors)
        if not largest <= _LARGEST:
            raise Refusal(f"adapter: {name} has an entry of {largest:g}, more than {_LARGEST:g}")
    return weights


def checked_states(arrays: Arrays, hidden_dim: int) -> F32:
    """``elsewhere`` among the arrays. Raises Refusal naming the limit."""
    states = np.asarray(arrays["elsewhere"], np.float32)
    if states.ndim != 2 or not len(states) or states.shape[1] != hidden_dim:
        raise Refusal(f"elsewhere: expected (m, {hidden_dim}) states, not {states.shape}")
    if not np.isfinite(states).all():
        raise Refusal("elsewhere: an entry is not finite")
    return states


def check_fingerprint(facts: Facts, fingerprint: str, what: str) -> None:
    """What names no model is taken; what names another one is not. Raises Refusal."""
    named = facts.get("fingerprint")
    if named and named != fingerprint:
        raise Refusal(f"{what} was made for another model: {named}, not {fingerprint}")
