"""Adapters and captures as safetensors bytes (https://github.com/huggingface/safetensors) and back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..lora import F32, Capture, LoraWeights, LowRank
from .files import DamagedFile

__all__ = [
    "adapter_bytes",
    "adapter_stem",
    "capture_bytes",
    "capture_from",
    "capture_stem",
    "moments_from",
    "scaling_of",
    "tensors_from",
    "weights_from",
]

_HALF_LIMIT = 60_000.0
"""float16 ends at 65,504; rows beyond this are stored divided by a scale of their own."""


def adapter_stem(key: str, version: int) -> str:
    """``adapters/<readable part>-<hash of key>/v<N>``: any key gives a safe and unique folder."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", key).strip("-")[:48]
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return f"adapters/{readable}-{digest}/v{version}"


def capture_stem() -> str:
    """Captures are named by content alone: one file serves the whole chain of adapter keys."""
    return "captures/c"


def adapter_bytes(weights: LoraWeights, moments: Mapping[str, F32]) -> bytes:
    """Weights and moments in float32; the scalings are in the row."""
    tensors = {"micro.lora_A": weights.micro.lora_A, "micro.lora_B": weights.micro.lora_B}
    if weights.base is not None:
        tensors["base.lora_A"] = weights.base.lora_A
        tensors["base.lora_B"] = weights.base.lora_B
    for layer, pair in weights.layers.items():
        tensors[f"layers.{layer}.lora_A"], tensors[f"layers.{layer}.lora_B"] = pair.lora_A, pair.lora_B
    tensors |= {f"moments.{name}": moment for name, moment in moments.items()}
    whole = {name: np.ascontiguousarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}
    return bytes(save(whole))


def tensors_from(data: bytes, name: str) -> dict[str, NDArray[Any]]:
    """Raises DamagedFile when `data` is no safetensors file."""
    try:
        tensors: dict[str, NDArray[Any]] = load(data)
    except SafetensorError as error:
        raise DamagedFile(f"{name}: not a safetensors file ({error})") from error
    return {name: array.copy() for name, array in tensors.items()}  # what they are views of has half a KB besides


def weights_from(tensors: Mapping[str, NDArray[Any]], scaling: Mapping[str, float]) -> LoraWeights:
    """Inverse of `adapter_bytes` for the weights."""

    def pair(part: str) -> LowRank:
        return LowRank(tensors[f"{part}.lora_A"], tensors[f"{part}.lora_B"], scaling[part])

    layers = {int(part.removeprefix("layers.")): pair(part) for part in scaling if part.startswith("layers.")}
    base = pair("base") if "base.lora_A" in tensors else None
    return LoraWeights(micro=pair("micro"), base=base, layers=layers)


def scaling_of(weights: LoraWeights) -> dict[str, float]:
    """What `weights_from` needs beside the tensors."""
    named = {"micro": weights.micro} | ({} if weights.base is None else {"base": weights.base})
    named |= {f"layers.{layer}": pair for layer, pair in weights.layers.items()}
    return {name: pair.scaling for name, pair in named.items()}


def moments_from(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """Inverse of `adapter_bytes` for the optimiser's moments."""
    return {name.removeprefix("moments."): array for name, array in tensors.items() if name.startswith("moments.")}


def capture_bytes(capture: Capture) -> bytes:
    """Hidden states as float16 (T, d) with a float32 scale a row where they need one; the rest as it is."""
    hidden = np.asarray(capture.hidden, dtype=np.float32)
    tensors: dict[str, NDArray[Any]] = {
        "prompt_ids": capture.prompt_ids.astype(np.int32),
        "token_ids": capture.token_ids.astype(np.int32),
        "logprobs": capture.logprobs.astype(np.float32),
        "adapter_versions": capture.adapter_versions.astype(np.int32),
    }
    if capture.memory is not None:
        tensors["memory"] = capture.memory.astype(np.float32)
    largest = np.abs(hidden).max(axis=1, initial=0.0)
    if (largest > _HALF_LIMIT).any():
        scale = np.maximum(largest / _HALF_LIMIT, 1.0).astype(np.float32)
        tensors["hidden_scale"] = scale
        hidden = hidden / scale[:, None]
    tensors["hidden"] = np.ascontiguousarray(hidden, dtype=np.float16)
    return bytes(save(tensors))


def capture_from(tensors: Mapping[str, NDArray[Any]], request_id: str, facts: Mapping[str, Any]) -> Capture:
    """Inverse of `capture_bytes`; hidden states come back as float32 with float16's precision."""
    hidden = tensors["hidden"].astype(np.float32)
    if "hidden_scale" in tensors:
        hidden *= tensors["hidden_scale"][:, None]
    return Capture(
        request_id=request_id,
        fingerprint=facts["fingerprint"],
        prompt_ids=tensors["prompt_ids"],
        token_ids=tensors["token_ids"],
        hidden=hidden,
        logprobs=tensors["logprobs"],
        adapter_versions=tensors["adapter_versions"],
        adapter_key=facts["adapter_key"],
        temperature=facts["temperature"],
        handle=facts["handle"],
        memory=tensors.get("memory"),
    )
