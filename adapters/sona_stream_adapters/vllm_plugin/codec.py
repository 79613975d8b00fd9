"""What travels between a proxy and vLLM's worker: arrays as safetensors, everything else as JSON in its metadata.

Nothing is ever unpickled, and each array's shape and dtype is checked by whoever uses it. The format is
https://github.com/huggingface/safetensors; the metadata entry ``json`` holds one JSON object, whose plain values
stand in the metadata by their own names as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sona_stream.lora import (
    Capture,
    Curvature,
    Evaluation,
    HiddenStatistics,
    LoraGradient,
    LoraWeights,
    LowRank,
    Spectrum,
    TokenSignal,
)

__all__ = [
    "Arrays",
    "CodecError",
    "Facts",
    "capture_from",
    "capture_parts",
    "curvature_from",
    "curvature_parts",
    "evaluation_from",
    "evaluation_parts",
    "gradient_from",
    "gradient_parts",
    "json_bytes",
    "names_in",
    "no_weights",
    "number_in",
    "pack",
    "signal_from",
    "signal_parts",
    "statistics_from",
    "statistics_parts",
    "text_in",
    "unpack",
    "weights_from",
    "weights_parts",
]

Arrays = dict[str, NDArray[Any]]
Facts = dict[str, Any]

_HEADER_LIMIT = 16 << 20
_GRADIENT = ("micro_A", "micro_B", "base_A", "base_B", "fisher_A", "fisher_B")
_GRADIENT_FACTS = ("tokens", "loss", "mean_kl_to_base", "mean_logprob")
_EVALUATION_FACTS = ("mean_kl_to_base", "max_kl_to_base", "mean_delta_ratio", "max_delta_ratio", "finite")


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


def _taken(arrays: Arrays, name: str, dims: int, dtype: type[Any] = np.float32) -> NDArray[Any]:
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


def _number(facts: Facts, name: str, default: float | None = None) -> float:
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
    return _number(_object(body), name)


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
    """``<prefix>micro.lora_A`` (r, d), ``<prefix>micro.lora_B`` (d, r), and of ``base``; facts: the scalings."""
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
        _taken(arrays, f"{name}.lora_A", 2),
        _taken(arrays, f"{name}.lora_B", 2),
        _number(facts, f"{name}.scaling", 1.0),
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
    token_ids = _taken(arrays, "token_ids", 1, np.int32)
    hidden = _taken(arrays, "hidden", 2) if "hidden" in arrays else np.zeros((0, hidden_dim), np.float32)
    capture = Capture(
        request_id=request_id or str(facts.get("request_id") or ""),
        fingerprint=str(_fact(facts, "fingerprint")),
        prompt_ids=_taken(arrays, "prompt_ids", 1, np.int32),
        token_ids=token_ids,
        hidden=hidden,
        logprobs=_taken(arrays, "logprobs", 1),
        adapter_versions=_taken(arrays, "adapter_versions", 1, np.int32),
        adapter_key=facts.get("adapter_key") or None,
        temperature=_number(facts, "temperature", 1.0),
        handle=facts.get("handle") or None,
    )
    tokens = len(token_ids)
    if capture.logprobs.shape != (tokens,) or capture.adapter_versions.shape != (tokens,):
        raise CodecError(f"logprobs and adapter_versions must have {tokens} entries, one a token")
    if hidden.shape[0] and hidden.shape != (tokens, hidden_dim):
        raise CodecError(f"hidden has shape {hidden.shape}, expected ({tokens}, {hidden_dim})")
    return capture


# ---- signals and what comes of them


def signal_parts(signal: TokenSignal) -> tuple[Arrays, Facts]:
    """Weights, ``advantages_<i>`` (T_i,) and the scalars; `None` stays null."""
    arrays, facts = weights_parts(signal.weights)
    for i, values in enumerate(signal.advantages):
        arrays[f"advantages_{i}"] = np.asarray(values, np.float32)
    facts |= {
        "anchor": float(signal.anchor),
        "ratio_clip": None if signal.ratio_clip is None else list(signal.ratio_clip),
        "top_k": signal.top_k,
        "fisher": bool(signal.fisher),
    }
    return arrays, facts


def signal_from(arrays: Arrays, facts: Facts, count: int) -> TokenSignal:
    """Inverse of `signal_parts` for ``count`` captures. Raises CodecError."""
    clip, top_k = facts.get("ratio_clip"), facts.get("top_k")
    pair = isinstance(clip, list) and len(clip) == 2 and all(isinstance(one, int | float) for one in clip)
    if clip is not None and not pair:
        raise CodecError("ratio_clip must be two numbers or null")
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
        raise CodecError(f"top_k must be a whole number of at least 1, or null, not {top_k!r}")
    return TokenSignal(
        weights=weights_from(arrays, facts),
        advantages=[_taken(arrays, f"advantages_{i}", 1) for i in range(count)],
        anchor=_number(facts, "anchor", 0.0),
        ratio_clip=None if clip is None else (float(clip[0]), float(clip[1])),
        top_k=top_k,
        fisher=bool(facts.get("fisher", False)),
    )


def gradient_parts(gradient: LoraGradient) -> tuple[Arrays, Facts]:
    """Every factor's gradient that is there, and the sums."""
    arrays = {name: getattr(gradient, name) for name in _GRADIENT if getattr(gradient, name) is not None}
    return arrays, {name: getattr(gradient, name) for name in _GRADIENT_FACTS}


def gradient_from(arrays: Arrays, facts: Facts) -> LoraGradient:
    """Inverse of `gradient_parts`. Raises CodecError."""
    found = {name: _taken(arrays, name, 2) for name in _GRADIENT if name in arrays}
    if "micro_A" not in found or "micro_B" not in found:
        raise CodecError("the arrays micro_A and micro_B are missing")
    return LoraGradient(
        micro_A=found["micro_A"],
        micro_B=found["micro_B"],
        base_A=found.get("base_A"),
        base_B=found.get("base_B"),
        tokens=int(_number(facts, "tokens")),
        loss=_number(facts, "loss"),
        mean_kl_to_base=_number(facts, "mean_kl_to_base"),
        mean_logprob=_number(facts, "mean_logprob"),
        fisher_A=found.get("fisher_A"),
        fisher_B=found.get("fisher_B"),
    )


def evaluation_parts(evaluation: Evaluation) -> tuple[Arrays, Facts]:
    """``logprobs_<i>`` and ``base_logprobs_<i>`` (T_i,), one a capture, and the scalars."""
    arrays: Arrays = {}
    for name, rows in (("logprobs", evaluation.logprobs), ("base_logprobs", evaluation.base_logprobs)):
        arrays |= {f"{name}_{i}": np.asarray(row, np.float32) for i, row in enumerate(rows)}
    return arrays, {name: getattr(evaluation, name) for name in _EVALUATION_FACTS}


def evaluation_from(arrays: Arrays, facts: Facts, count: int) -> Evaluation:
    """Inverse of `evaluation_parts` for ``count`` captures. Raises CodecError."""

    def rows(name: str) -> Sequence[NDArray[np.float32]]:
        return [_taken(arrays, f"{name}_{i}", 1) for i in range(count)]

    return Evaluation(
        mean_kl_to_base=_number(facts, "mean_kl_to_base"),
        max_kl_to_base=_number(facts, "max_kl_to_base"),
        logprobs=rows("logprobs"),
        base_logprobs=rows("base_logprobs"),
        mean_delta_ratio=_number(facts, "mean_delta_ratio"),
        max_delta_ratio=_number(facts, "max_delta_ratio"),
        finite=str(facts.get("finite", True)).lower() in ("true", "1"),
    )


def statistics_parts(statistics: HiddenStatistics) -> tuple[Arrays, Facts]:
    """``mean`` (d,); ``rms`` and ``tokens`` among the facts."""
    return {"mean": np.asarray(statistics.mean, np.float32)}, {"rms": statistics.rms, "tokens": statistics.tokens}


def statistics_from(arrays: Arrays, facts: Facts) -> HiddenStatistics:
    """Inverse of `statistics_parts`. Raises CodecError."""
    return HiddenStatistics(int(_number(facts, "tokens")), _taken(arrays, "mean", 1), _number(facts, "rms"))


def curvature_parts(curvature: Curvature) -> tuple[Arrays, Facts]:
    """``constant`` (d,), ``vectors`` (k, d), ``values`` (k,), ``scores`` (n, d); the scalars among the facts."""
    outputs = curvature.outputs
    arrays = {"constant": curvature.constant, "vectors": outputs.vectors, "values": outputs.values}
    whole = {name: np.asarray(array, np.float32) for name, array in {**arrays, "scores": curvature.scores}.items()}
    return whole, {"tokens": curvature.tokens, "rms": curvature.rms, "rest": outputs.rest}


def curvature_from(arrays: Arrays, facts: Facts) -> Curvature:
    """Inverse of `curvature_parts`. Raises CodecError."""
    return Curvature(
        tokens=int(_number(facts, "tokens")),
        rms=_number(facts, "rms"),
        constant=_taken(arrays, "constant", 1),
        outputs=Spectrum(_taken(arrays, "vectors", 2), _taken(arrays, "values", 1), _number(facts, "rest")),
        scores=_taken(arrays, "scores", 2),
    )
