"""The lm_head of a model that vLLM serves, described so that gradients can be taken through it.

A description is not believed: it is compared with the model's own logits once. Where it does not fit (a quantised
head, one that does more than scale and cap), rows are had from the model itself and only the likeliest tokens of
each position enter (`SampledHead`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch

from sona_stream.errors import HostError

from ..head import DenseHead, Head, SampledHead, Shard

__all__ = ["Described", "describe_head", "find_head", "without_lora"]

_PROBE_ROWS = 4
_TOLERANCE = {torch.float32: 1e-4}
_TOLERANCE_HALF = 2e-2


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Described:
    """A head and what is to be known about it."""

    head: Head
    note: str
    """empty, or why the whole matrix is not used"""


def describe_head(
    model: Any,
    model_logits: Callable[[torch.Tensor], torch.Tensor],
    *,
    hidden_dim: int,
    vocab_size: int,
    dtype: torch.dtype,
    device: torch.device,
    rank: int = 0,
    all_reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Described:
    """`model_logits` (n, d) -> (n, V) is the model's own `compute_logits`, whole on every rank. `all_reduce` sums
    over the ranks of tensor parallelism. Raises HostError where not even the model's own logits can be used.
    """
    layer, processor = find_head(model)
    scale = float(getattr(processor, "scale", 1.0))
    soft_cap = getattr(processor, "soft_cap", None)
    probe = torch.randn(_PROBE_ROWS, hidden_dim, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    with torch.inference_mode():
        expected = model_logits(probe)[:, :vocab_size].float()
    reason = "no lm_head was found"
    if layer is not None:
        try:
            head = _dense(layer, scale, soft_cap, vocab_size, rank, all_reduce)
            difference = _difference(head, probe, expected)
            if difference <= _TOLERANCE.get(dtype, _TOLERANCE_HALF):
                return Described(head, "")
            reason = f"its matrix gives other logits than the model (relative difference {difference:.1e})"
        except (HostError, AttributeError, TypeError) as error:
            reason = str(error)
    if soft_cap is not None:
        raise HostError(f"lm_head: {reason}, and rows cannot be read through a soft cap")
    bias = model_logits(torch.zeros(1, hidden_dim, dtype=dtype, device=device))[0, :vocab_size].float() / scale
    rows = _RowsOfModel(model_logits, hidden_dim, dtype, device, scale, bias)
    sampled = SampledHead(
        lambda hidden: model_logits(hidden.to(dtype)),
        rows,
        hidden_dim=hidden_dim,
        vocab_size=vocab_size,
        device=device,
        bias=bias,
        scale=scale,
    )
    return Described(sampled, f"top-k mode: {reason}")


def find_head(model: Any) -> tuple[Any, Any]:
    """The layer and its logits processor, of the model or of the language model inside it."""
    module = _with_head(model)
    if module is None:
        return None, None
    processor, layer = module.logits_processor, getattr(module, "lm_head", None)
    layer = getattr(layer, "base_layer", layer)
    if layer is None or not hasattr(layer, "weight"):  # tied without a layer of its own
        layer = getattr(getattr(module, "model", module), "embed_tokens", None)
    return getattr(layer, "base_layer", layer), getattr(processor, "base_layer", processor)


@contextlib.contextmanager
def without_lora(model: Any) -> Iterator[None]:
    """Takes vLLM's own LoRA (``--enable-lora``) off the head. Outside a step its wraps know no rows: before the
    first one they fail, later they would add what the last batch's requests had.
    """
    module = _with_head(model)
    heads: dict[str, Any] = {name: getattr(module, name, None) for name in ("logits_processor", "lm_head")}
    wrapped = {name: layer for name, layer in heads.items() if hasattr(layer, "base_layer")}
    for name, layer in wrapped.items():
        setattr(module, name, layer.base_layer)
    try:
        yield
    finally:
        for name, layer in wrapped.items():
            setattr(module, name, layer)


def _with_head(model: Any) -> Any:
    """The module that has the logits processor: the model, or the language model inside it."""
    if not hasattr(model, "modules"):
        return None
    for module in model.modules():
        if hasattr(getattr(module, "logits_processor", None), "scale"):
            return module
    return None


def _dense(
    layer: Any,
    scale: float,
    soft_cap: float | None,
    vocab_size: int,
    rank: int,
    all_reduce: Callable[[torch.Tensor], torch.Tensor] | None,
) -> DenseHead:
    world = int(getattr(layer, "tp_size", 1))
    shard = None
    if world > 1:
        own = layer.shard_indices
        start = min(own.org_vocab_start_index, vocab_size)
        stop = min(own.org_vocab_end_index, vocab_size)
        shard = Shard(start, stop, rank, world, all_reduce)
    weight, bias = layer.weight.data, getattr(layer, "bias", None)
    return DenseHead(
        weight,
        None if bias is None else bias.data,
        vocab_size=vocab_size,
        scale=scale,
        soft_cap=soft_cap,
        shard=shard,
    )


def _difference(head: DenseHead, probe: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference from the model's own logits, relative to their size."""
    with torch.inference_mode():
        own = head.logits(probe)
    there = expected[:, head.shard.start : head.shard.stop]
    if not there.numel():
        return 0.0
    return float((own - there).abs().max() / expected.abs().max().clamp_min(1e-12))


class _RowsOfModel:
    """Rows of a linear head, from its answers to unit vectors, 64 of them at a time."""

    def __init__(
        self,
        model_logits: Callable[[torch.Tensor], torch.Tensor],
        hidden_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        scale: float,
        bias: torch.Tensor,
    ) -> None:
        self._model_logits, self._dim, self._dtype, self._device = model_logits, hidden_dim, dtype, device
        self._scale, self._bias = scale, bias

    def __call__(self, ids: torch.Tensor) -> Generator[None, None, torch.Tensor]:
        """(k,) -> (k, d) float32, a slice a product with the head."""
        out = torch.empty(len(ids), self._dim, device=self._device)
        for start in range(0, self._dim, 64):
            stop = min(start + 64, self._dim)
            units = torch.zeros(stop - start, self._dim, dtype=self._dtype, device=self._device)
            units[torch.arange(stop - start), torch.arange(start, stop)] = 1.0
            logits = self._model_logits(units)
            out[:, start:stop] = (logits[:, ids].float() / self._scale - self._bias[ids]).T
            yield
        return out
