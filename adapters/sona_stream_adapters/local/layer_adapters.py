"""Low-rank adapters at inner layers, through forward hooks: the guide's per-layer loop, for research.

They change the model for every request: hidden states after them differ, so the host's fingerprint differs too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from typing import Any

import numpy as np
import torch

from sona_stream.errors import HostError
from sona_stream.lora import LoraWeights, LowRank
from sona_stream_adapters.head import check_weights, stack_factors

from .model import LanguageModel

__all__ = ["LayerAdapters"]


class LayerAdapters:
    """At most one pair of factors a decoder layer, on the layer's output."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._installed: dict[int, tuple[Any, str]] = {}
        self.suffix = ""
        """what installed adapters add to the fingerprint; empty when there are none"""

    def put(self, layer: int, weights: LowRank | None) -> Generator[None, None, None]:
        """A job of the torch thread, so that no forward pass sees half a change. Negative layers count from the
        end. Raises HostError.
        """
        layers = next(
            (found for name in ("layers", "h") if (found := getattr(self._model.decoder, name, None))), ()
        )
        if not -len(layers) <= layer < len(layers):
            raise HostError(f"layer {layer} is outside 0..{len(layers) - 1}")
        layer %= len(layers)
        if weights is not None:
            check_weights(LoraWeights(weights), self._model.hidden_dim)
        if layer in self._installed:
            self._installed.pop(layer)[0].remove()
        if weights is not None:
            self._installed[layer] = (layers[layer].register_forward_hook(_hook(weights)), _digest(weights))
        parts = [f"{index}:{digest}" for index, (_, digest) in sorted(self._installed.items())]
        self.suffix = "".join(f"+layer{part}" for part in parts)
        yield  # the change is whole; the job ends at its next slice


def _hook(weights: LowRank) -> Any:
    factors = stack_factors(LoraWeights(weights))

    def add_delta(module: Any, inputs: Any, output: Any) -> Any:
        hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
        adapted = hidden + (hidden @ factors.A.T) @ factors.B.T
        return (adapted, *output[1:]) if isinstance(output, tuple) else adapted

    return add_delta


def _digest(weights: LowRank) -> str:
    digest = hashlib.sha256(np.float64(weights.scaling).tobytes())
    digest.update(np.ascontiguousarray(weights.lora_A).data)
    digest.update(np.ascontiguousarray(weights.lora_B).data)
    return digest.hexdigest()[:12]
