"""Weights laid out as oneDNN wants them. Where the loaded model then does not agree with its own forward pass, the
originals come back.
"""

from __future__ import annotations

from typing import Any

import torch

from sona_stream_adapters.head.linear import has_onednn, linear

__all__ = ["Packing", "linear", "pack"]


def pack(weight: torch.Tensor) -> torch.Tensor:
    """(out, in) float32 in oneDNN's own layout, a copy for `linear` alone; without oneDNN the weight itself."""
    if not has_onednn():
        return weight
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


class _PackedLinear(torch.nn.Module):
    def __init__(self, original: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = original.in_features, original.out_features
        self.packed = pack(original.weight.detach())
        self.bias = original.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.packed, self.bias)


class Packing:
    """Replaces the `torch.nn.Linear`s of a module, and can take that back until `commit`."""

    def __init__(self, module: Any) -> None:
        self._originals: list[tuple[Any, str, Any]] = []
        if not has_onednn():
            return
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is torch.nn.Linear and child.weight.dtype == torch.float32:
                    self._originals.append((parent, name, child))
                    setattr(parent, name, _PackedLinear(child))

    def undo(self) -> None:
        """Put the originals back."""
        for parent, name, child in self._originals:
            setattr(parent, name, child)
        self._originals = []

    def commit(self) -> None:
        """Let go of the originals and their memory."""
        self._originals = []
