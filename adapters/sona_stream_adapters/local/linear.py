"""Products with weight matrices through oneDNN, whose float32 kernels are 2-3x faster than the BLAS that torch
calls by default on many processors, and whose result for one row does not depend on how many rows there are.

The operators are those that torch.compile emits for frozen weights. Where a build lacks them, or where the loaded
model does not agree with its own forward pass, plain torch is used.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["Packing", "has_onednn", "linear", "pack"]


def has_onednn() -> bool:
    """Whether this build of torch has the operators."""
    return torch._C._has_mkldnn and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )


def pack(weight: torch.Tensor) -> torch.Tensor:
    """(out, in) float32 in oneDNN's own layout, a copy for `linear` alone; without oneDNN the weight itself."""
    if not has_onednn():
        return weight
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(..., in) x (out, in) -> (..., out); `weight` as it is or packed."""
    if not (weight.is_mkldnn or (has_onednn() and weight.is_contiguous())):
        return torch.nn.functional.linear(x, weight, bias)
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


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
