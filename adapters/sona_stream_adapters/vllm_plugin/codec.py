"""What travels between a proxy and vLLM's worker: arrays as safetensors, everything else as JSON in its metadata.

Nothing is ever unpickled, and each array's shape and dtype is checked by whoever uses it. The format is
https://github.com/huggingface/safetensors; the metadata entry ``json`` holds one JSON object, whose plain values
stand in the metadata by their own names as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sona_stream.errors import HostError
from sona_stream.lora import Capture, LoraWeights, LowRank

__all__ = [
    "Arrays",
    "CodecError",
    "Facts",
    "capture_from",
    "capture_parts",
    "json_bytes",
    "names_in",
    "no_weights",
    "number",
    "number_in",
    "pack",
    "taken",
    "text_in",
    "unpack",
    "weights_from",
    "weights_parts",
]

Arrays = dict[str, NDArray[Any]]
Facts = dict[str, Any]

_HEADER_LIMIT = 16 << 20


class CodecError(ValueError):
    """The bytes are not what was agreed; the message names the part."""


def pack(arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any] | None = None) -> bytes:
    """One safetensors blob. ``facts`` must be JSON; numbers that are not finite travel, too."""
    from safetensors.numpy import save

    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    facts = dict(facts or {})
    plain = {name: str(value) for name, value in facts.items() if isinstance(value, str | int | float)}
    return bytes(save(whole, {**plain, "json": json.dumps(facts)}))


def unpack(data: bytes) -> tuple[Arrays, Facts]:
    """Inverse of `pack`; bfloat16 arrays come as float32, and metadata beside ``json`` as texts among the facts.

    Raises CodecError.
    """
    from safetensors import SafetensorError, deserialize

    parts: Callable[[bytes], list[tuple[str, Mapping[str, Any]]]] = deserialize
    try:
        arrays = {name: _array(name, part) for name, part in parts(data)}
    except SafetensorError as error:
        raise CodecError(f"the body is not a safetensors file: {error}") from None
    return arrays, _facts(data)


def _facts(data: bytes) -> Facts:
    length = int.from_bytes(data[:8], "little")
    if length > _HEADER_LIMIT:
        raise CodecError(f"the header has {length} bytes; the limit is {_HEADER_LIMIT}")
    metadata = dict(json.loads(data[8 : 8 + length]).get("__metadata__") or {})
    try:
        facts = json.loads(metadata.pop("json", "{}"))
    except ValueError as error:
        raise CodecError(f"the metadata entry json is no JSON: {error}") from None
    if not isinstance(facts, dict):
        raise CodecError("the metadata entry json must be a JSON object")
    return {**metadata, **facts}


def _array(name: str, part: Mapping[str, Any]) -> NDArray[Any]:
    kinds = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I32": "<i4", "I64": "<i8", "BOOL": "?"}
    kind, shape, data = part["dtype"], part["shape"], part["data"]
    if kind == "BF16":
        wide = np.frombuffer(data, "<u2").astype("<u4") << np.uint32(16)
        return wide.view("<f4").reshape(shape)
    if kind not in kinds:
        raise CodecError(f"{name} is {kind}; known: {', '.join((*kinds, 'BF16'))}")
    return np.frombuffer(data, kinds[kind]).reshape(shape).copy()


def taken(arrays: Arrays, name: str, dims: int, dtype: type[Any] = np.float32) -> NDArray[Any]:
    """The array of this name with so many dimensions. Raises CodecError."""
    array = arrays.get(name)
    if array is None:
        raise CodecError(f"the array {name} is missing")
    if array.ndim != dims:
        raise CodecError(f"{name} has shape {array.shape}, expected {dims} dimensions")
    if np.dtype(dtype).kind == "i" and array.dtype.kind != "i":
        raise CodecError(f"{name} must hold whole numbers")
    return np.ascontiguousarray(array, dtype)


def _fact(facts: Facts, name: str, default: Any = None) -> Any:
    value = facts.get(name, default)
    if value is None:
        raise CodecError(f"{name} is missing")
    return value


def number(facts: Facts, name: str, default: float | None = None) -> float:
    """The fact of this name, which may have travelled as text. Raises CodecError."""
    try:
        return float(_fact(facts, name, default))
    except (TypeError, ValueError):
        raise CodecError(f"{name} must be a number") from None


# ---- JSON


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """One JSON object."""
    return json.dumps(dict(value)).encode()


def number_in(body: bytes, name: str) -> float:
    """One field of a JSON object. Raises CodecError."""
    return number(_object(body), name)


def text_in(body: bytes, name: str) -> str:
    """The same, a text that is not empty."""
    return str(_fact(_object(body), name))


def names_in(body: bytes, name: str) -> list[str]:
    """The same, a list of texts; empty when it is not there."""
    names = _object(body).get(name)
    return [str(one) for one in names] if isinstance(names, list) else []


def _object(body: bytes) -> Facts:
    try:
        value = json.loads(body)
    except ValueError:
        raise CodecError("a JSON object was expected") from None
    if not isinstance(value, dict):
        raise CodecError("a JSON object was expected")
    return value


# ---- adapters


def no_weights(hidden_dim: int) -> LoraWeights:
    """An adapter that changes nothing."""
    return LoraWeights(LowRank(np.zeros((1, hidden_dim), np.float32), np.zeros((hidden_dim, 1), np.float32)))


def weights_parts(weights: LoraWeights, prefix: str = "") -> tuple[Arrays, Facts]:
    """``<prefix>micro.lora_A`` (r, d), ``<prefix>micro.lora_B`` (d, r), and of ``base``; facts: the scalings.
    Raises HostError on pairs inside the model.
    """
    if weights.layers:
        raise HostError("layers: only a local model adapts layers inside the model; this one's lm_head alone")
    pairs = {"micro": weights.micro} | ({} if weights.base is None else {"base": weights.base})
    arrays: Arrays = {}
    facts: Facts = {}
    for name, pair in pairs.items():
        arrays[f"{prefix}{name}.lora_A"] = np.asarray(pair.lora_A, np.float32)
        arrays[f"{prefix}{name}.lora_B"] = np.asarray(pair.lora_B, np.float32)
        facts[f"{prefix}{name}.scaling"] = float(pair.scaling)
    return arrays, facts


def weights_from(arrays: Arrays, facts: Facts, prefix: str = "") -> LoraWeights:
    """Inverse of `weights_parts`. Ranks and widths are the taker's to check. Raises CodecError."""
    base = None
    if f"{prefix}base.lora_A" in arrays or f"{prefix}base.lora_B" in arrays:
        base = _pair(arrays, facts, f"{prefix}base")
    return LoraWeights(micro=_pair(arrays, facts, f"{prefix}micro"), base=base)


def _pair(arrays: Arrays, facts: Facts, name: str) -> LowRank:
    return LowRank(
        taken(arrays, f"{name}.lora_A", 2),
        taken(arrays, f"{name}.lora_B", 2),
        number(facts, f"{name}.scaling", 1.0),
    )


# ---- captures


def capture_parts(capture: Capture, *, hidden: bool) -> tuple[Arrays, Facts]:
    """The arrays of a `Capture` by their names; ``hidden`` (T, d) only when asked for."""
    arrays: Arrays = {
        "prompt_ids": np.asarray(capture.prompt_ids, np.int32),
        "token_ids": np.asarray(capture.token_ids, np.int32),
        "logprobs": np.asarray(capture.logprobs, np.float32),
        "adapter_versions": np.asarray(capture.adapter_versions, np.int32),
    }
    if hidden:
        arrays["hidden"] = np.asarray(capture.hidden, np.float32)
    if capture.memory is not None:
        arrays["memory"] = np.asarray(capture.memory, np.float32)
    facts: Facts = {
        "request_id": capture.request_id,
        "fingerprint": capture.fingerprint,
        "temperature": float(capture.temperature),
        "adapter_key": capture.adapter_key,
        "handle": capture.handle,
    }
    return arrays, facts


def capture_from(arrays: Arrays, facts: Facts, *, hidden_dim: int, request_id: str = "") -> Capture:
    """Inverse of `capture_parts`; ``hidden`` is (0, hidden_dim) when it did not come. Raises CodecError."""
    token_ids = taken(arrays, "token_ids", 1, np.int32)
    hidden = taken(arrays, "hidden", 2) if "hidden" in arrays else np.zeros((0, hidden_dim), np.float32)
    capture = Capture(
        request_id=request_id or str(facts.get("request_id") or ""),
        fingerprint=str(_fact(facts, "fingerprint")),
        prompt_ids=taken(arrays, "prompt_ids", 1, np.int32),
        token_ids=token_ids,
        hidden=hidden,
        logprobs=taken(arrays, "logprobs", 1),
        adapter_versions=taken(arrays, "adapter_versions", 1, np.int32),
        adapter_key=facts.get("adapter_key") or None,
        temperature=number(facts, "temperature", 1.0),
        handle=facts.get("handle") or None,
        memory=taken(arrays, "memory", 1) if "memory" in arrays else None,
    )
    tokens = len(token_ids)
    if capture.logprobs.shape != (tokens,) or capture.adapter_versions.shape != (tokens,):
        raise CodecError(f"logprobs and adapter_versions must have {tokens} entries, one a token")
    if capture.memory is not None and capture.memory.shape != (tokens,):
        raise CodecError(f"memory must have {tokens} entries, one a token")
    if hidden.shape[0] and hidden.shape != (tokens, hidden_dim):
        raise CodecError(f"hidden has shape {hidden.shape}, expected ({tokens}, {hidden_dim})")
    return capture
