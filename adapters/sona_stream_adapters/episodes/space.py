"""The space that hidden states are compared in: standardised by what a fixed text made of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from sona_stream.lora import HiddenSpace

__all__ = ["Space", "measured_space"]

_LEAST_SPREAD = 1e-6


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Space:
    """A `HiddenSpace` on a device."""

    mean: torch.Tensor
    """(d,) float32"""
    inverse_spread: torch.Tensor
    """(d,) float32"""

    @classmethod
    def of(cls, space: HiddenSpace, device: torch.device | str) -> Space:
        """Copied there."""
        inverse = 1.0 / np.maximum(np.asarray(space.spread, np.float32), _LEAST_SPREAD)
        mean = np.array(space.mean, np.float32)
        return cls(torch.from_numpy(mean).to(device), torch.from_numpy(inverse).to(device))

    def unit(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, d) -> (n, d) float32 of length 1."""
        return torch.nn.functional.normalize((hidden.float() - self.mean) * self.inverse_spread, dim=1)


def measured_space(hidden: torch.Tensor, version: str) -> HiddenSpace:
    """Mean and standard deviation of each entry of `hidden` (n, d), summed in double. An entry that hardly moves
    counts as if it moved by a thousandth of the others' mean spread: its noise would drown them.
    """
    states = hidden.double()
    mean = states.mean(0)
    spread = (states - mean).square().mean(0).sqrt()
    floor = max(1e-3 * float(spread.mean()), _LEAST_SPREAD)
    return HiddenSpace(mean.float().cpu().numpy(), spread.clamp_min(floor).float().cpu().numpy(), version)
