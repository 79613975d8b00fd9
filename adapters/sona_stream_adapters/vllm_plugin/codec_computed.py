"""The rest of `codec`: what is asked about captures, and what is answered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sona_stream.lora import Curvature, Evaluation, HiddenSpace, LoraGradient, Spectrum, TokenSignal

from .codec import Arrays, CodecError, Facts, number, taken, weights_from, weights_parts

__all__ = [
    "curvature_from",
    "curvature_parts",
    "evaluation_from",
    "evaluation_parts",
    "gradient_from",
    "gradient_parts",
    "signal_from",
    "signal_parts",
    "space_from",
    "space_parts",
]

_EVALUATION_FACTS = ("mean_kl_to_base", "max_kl_to_base", "mean_delta_ratio", "max_delta_ratio", "finite")
_REPETITION = ("collision", "base_collision", "repeat_mass", "base_repeat_mass")
_GRADIENT_FACTS = ("tokens", "loss", "mean_kl_to_base", "mean_logprob")
_GRADIENT = ("micro_A", "micro_B", "base_A", "base_B", "fisher_A", "fisher_B")


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
        advantages=[taken(arrays, f"advantages_{i}", 1) for i in range(count)],
        anchor=number(facts, "anchor", 0.0),
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
    found = {name: taken(arrays, name, 2) for name in _GRADIENT if name in arrays}
    if "micro_A" not in found or "micro_B" not in found:
        raise CodecError("the arrays micro_A and micro_B are missing")
    return LoraGradient(
        micro_A=found["micro_A"],
        micro_B=found["micro_B"],
        base_A=found.get("base_A"),
        base_B=found.get("base_B"),
        tokens=int(number(facts, "tokens")),
        loss=number(facts, "loss"),
        mean_kl_to_base=number(facts, "mean_kl_to_base"),
        mean_logprob=number(facts, "mean_logprob"),
        fisher_A=found.get("fisher_A"),
        fisher_B=found.get("fisher_B"),
    )


def evaluation_parts(evaluation: Evaluation) -> tuple[Arrays, Facts]:
    """``logprobs_<i>`` and ``base_logprobs_<i>`` (T_i,), one a capture, and the scalars."""
    arrays: Arrays = {}
    for name, rows in (("logprobs", evaluation.logprobs), ("base_logprobs", evaluation.base_logprobs)):
        arrays |= {f"{name}_{i}": np.asarray(row, np.float32) for i, row in enumerate(rows)}
    told = {name: getattr(evaluation, name) for name in (*_EVALUATION_FACTS, *_REPETITION)}
    return arrays, {name: value for name, value in told.items() if value is not None}


def evaluation_from(arrays: Arrays, facts: Facts, count: int) -> Evaluation:
    """Inverse of `evaluation_parts` for ``count`` captures. Raises CodecError."""

    def rows(name: str) -> Sequence[NDArray[np.float32]]:
        return [taken(arrays, f"{name}_{i}", 1) for i in range(count)]

    return Evaluation(
        mean_kl_to_base=number(facts, "mean_kl_to_base"),
        max_kl_to_base=number(facts, "max_kl_to_base"),
        logprobs=rows("logprobs"),
        base_logprobs=rows("base_logprobs"),
        mean_delta_ratio=number(facts, "mean_delta_ratio"),
        max_delta_ratio=number(facts, "max_delta_ratio"),
        finite=str(facts.get("finite", True)).lower() in ("true", "1"),
        **{name: number(facts, name) for name in _REPETITION if name in facts},
    )


def space_parts(space: HiddenSpace) -> tuple[Arrays, Facts]:
    """``mean`` and ``spread`` (d,); ``space`` among the facts is its version."""
    arrays = {"mean": np.asarray(space.mean, np.float32), "spread": np.asarray(space.spread, np.float32)}
    return arrays, {"space": space.version}


def space_from(arrays: Arrays, facts: Facts) -> HiddenSpace:
    """Inverse of `space_parts`. Raises CodecError."""
    return HiddenSpace(taken(arrays, "mean", 1), taken(arrays, "spread", 1), str(facts.get("space") or ""))


def curvature_parts(curvature: Curvature) -> tuple[Arrays, Facts]:
    """``constant`` (d,), ``vectors`` (k, d), ``values`` (k,), ``scores`` (n, d), and where they are known
    ``input_vectors``, ``input_values`` and ``contrast``; the scalars among the facts.
    """
    outputs, inputs = curvature.outputs, curvature.inputs
    arrays = {"constant": curvature.constant, "vectors": outputs.vectors, "values": outputs.values}
    whole = {name: np.asarray(array, np.float32) for name, array in {**arrays, "scores": curvature.scores}.items()}
    facts: Facts = {"tokens": curvature.tokens, "rms": curvature.rms, "rest": outputs.rest}
    if inputs is not None:
        whole |= {"input_vectors": inputs.vectors, "input_values": inputs.values}
        facts["input_rest"] = inputs.rest
    if curvature.contrast is not None:
        whole["contrast"] = np.asarray(curvature.contrast, np.float32)
    return whole, facts


def curvature_from(arrays: Arrays, facts: Facts) -> Curvature:
    """Inverse of `curvature_parts`. Raises CodecError."""
    return Curvature(
        tokens=int(number(facts, "tokens")),
        rms=number(facts, "rms"),
        constant=taken(arrays, "constant", 1),
        outputs=Spectrum(taken(arrays, "vectors", 2), taken(arrays, "values", 1), number(facts, "rest")),
        scores=taken(arrays, "scores", 2),
        inputs=_inputs_from(arrays, facts) if "input_vectors" in arrays else None,
        contrast=taken(arrays, "contrast", 1) if "contrast" in arrays else None,
    )


def _inputs_from(arrays: Arrays, facts: Facts) -> Spectrum:
    vectors, values = taken(arrays, "input_vectors", 2), taken(arrays, "input_values", 1)
    return Spectrum(vectors, values, number(facts, "input_rest"))
