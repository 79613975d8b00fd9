"""Products with weight matrices through oneDNN, whose float32 kernels are 2-3x faster than the BLAS that torch
calls by default on many processors, and whose result for one row does not depend on how many rows there are.

The operators are those that torch.compile emits for frozen weights. Where a build lacks them plain torch is used.
"""

from __future__ import annotations

import torch

__all__ = ["has_onednn", "linear"]


def has_onednn() -> bool:
    """Whether this build of torch has the operators."""
    return torch._C._has_mkldnn and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(..., in) x (out, in) -> (..., out) in float32; `weight` as it is or packed."""
    if not (weight.is_mkldnn or (has_onednn() and weight.is_cpu and weight.is_contiguous() and weight.numel())):
        return torch.nn.functional.linear(x, weight, bias)
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out
