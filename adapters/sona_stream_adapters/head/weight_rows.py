"""Products with rows of an lm_head. The rows stay in the dtype they are served in; what is computed is float32.

A half-precision head is converted block by block, so that no float32 copy of it ever exists (2 GB for 128,000
tokens of 4,096).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .linear import linear

__all__ = ["WeightRows"]

_HALF = (torch.bfloat16, torch.float16)
_CPU_BYTES, _DEVICE_BYTES = 4 << 20, 64 << 20
"""of one float32 block: what stays in a processor's cache, and what keeps an accelerator busy"""


class WeightRows:
    """`weight` (v, d) in any float dtype, `bias` (v,) or none. `packed`: the same float32 weight, laid out for
    `linear`. v may be 0. `block_bytes` of float32 are converted at a time.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        packed: torch.Tensor | None = None,
        block_bytes: int | None = None,
    ) -> None:
        self.weight = weight
        self.bias = None if bias is None else bias.float()
        self._block_bytes = block_bytes or (_CPU_BYTES if weight.is_cpu else _DEVICE_BYTES)
        self._product = weight if packed is None else packed

    def __len__(self) -> int:
        return int(self.weight.shape[0])

    def take(self, index: torch.Tensor) -> WeightRows:
        """Some of the rows, copied."""
        bias = None if self.bias is None else self.bias[index]
        return WeightRows(self.weight[index], bias, block_bytes=self._block_bytes)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, d) -> (n, v)."""
        if self.weight.dtype == torch.float32:
            return linear(hidden.float(), self._product, self.bias)
        if hidden.is_cuda and hidden.dtype == self.weight.dtype and hidden.dtype in _HALF and len(self):
            out = torch.mm(hidden, self.weight.T, out_dtype=torch.float32)  # products of halves are exact
        else:
            hidden = hidden.float()
            out = torch.empty(hidden.shape[0], len(self), device=hidden.device)
            for at, block in self._blocks():
                out[:, at] = linear(hidden, block)
        return out if self.bias is None else out.add_(self.bias)

    def project(self, B: torch.Tensor) -> torch.Tensor:
        """(d, q) -> (q, v): W B, transposed so that each row is contiguous."""
        columns = B.T.contiguous()
        if self.weight.dtype == torch.float32:
            return linear(columns, self._product)
        out = torch.empty(len(columns), len(self), device=B.device)
        for at, block in self._blocks():
            out[:, at] = linear(columns, block)
        return out

    def collect(self, values: torch.Tensor) -> torch.Tensor:
        """(q, v) -> (q, d): `values` times W. In blocks summed in double: 50,000 terms one after the other in
        single precision would cost three digits.
        """
        total = torch.zeros(values.shape[0], self.weight.shape[1], dtype=torch.float64, device=values.device)
        for at, block in self._blocks(8192 if values.is_cuda else 1024):
            total += values[:, at] @ block
        return total.float()

    def product(self, values: torch.Tensor) -> torch.Tensor:
        """(n, v) -> (n, d): `values` times W, in single precision."""
        if self.weight.dtype == torch.float32:
            return values @ self.weight
        total = torch.zeros(values.shape[0], self.weight.shape[1], device=values.device)
        for at, block in self._blocks():
            total.addmm_(values[:, at], block)
        return total

    def _blocks(self, rows: int | None = None) -> Iterator[tuple[slice, torch.Tensor]]:
        """Neighbouring rows in float32, at most `rows`, and at most `block_bytes` where they must be converted."""
        bound = max(1, self._block_bytes // (4 * self.weight.shape[1]))
        if self.weight.dtype != torch.float32:
            rows = bound if rows is None else min(rows, bound)
        step = len(self) if rows is None else rows
        for start in range(0, len(self), max(step, 1)):
            at = slice(start, min(start + step, len(self)))
            yield at, self.weight[at].float()
