"""What a host refuses before it computes. Every message names the capture or the field, and the limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sona_stream.errors import CaptureGone, HostError
from sona_stream.lora import TokenSignal

from .batch import TokenRows

__all__ = ["check_captures", "check_signal", "check_top_k"]


def check_captures(captures: Sequence[TokenRows], hidden_dim: int) -> None:
    """Raises HostError, or CaptureGone for one whose hidden states are not here."""
    if not captures or not any(len(capture) for capture in captures):
        raise HostError("captures: at least one token is needed")
    for capture in captures:
        name, tokens = f"capture {capture.request_id!r}", len(capture)
        if tokens and not capture.hidden.shape[0]:
            raise CaptureGone(f"{name} holds no hidden states; encode its text again")
        for field, expected in (("hidden", (tokens, hidden_dim)), ("logprobs", (tokens,))):
            shape = tuple(getattr(capture, field).shape)
            if shape != expected:
                raise HostError(f"{name}.{field} has shape {shape}, expected {expected}")
        if not (_is_finite(capture.hidden) and _is_finite(capture.logprobs)):
            raise HostError(f"{name}: hidden and logprobs must be finite numbers")
        if not math.isfinite(capture.temperature) or capture.temperature < 0:
            raise HostError(f"{name}.temperature {capture.temperature} must be a finite number >= 0")


def check_signal(captures: Sequence[TokenRows], signal: TokenSignal) -> None:
    """The signal's own fields; its weights are `check_weights`'s. Raises HostError."""
    if len(signal.advantages) != len(captures):
        raise HostError(f"advantages: {len(signal.advantages)} arrays for {len(captures)} captures")
    for capture, advantages in zip(captures, signal.advantages, strict=True):
        if advantages.shape != (len(capture),):
            raise HostError(
                f"advantages of {capture.request_id!r} have shape {advantages.shape}, expected ({len(capture)},)"
            )
        if not np.isfinite(advantages).all():
            raise HostError(f"advantages of {capture.request_id!r} must be finite numbers")
    if not np.isfinite(signal.anchor) or signal.anchor < 0:
        raise HostError(f"anchor {signal.anchor} must be a finite number >= 0")
    if signal.ratio_clip is not None and not 0 <= signal.ratio_clip[0] <= 1 <= signal.ratio_clip[1]:
        raise HostError(f"ratio_clip {signal.ratio_clip} must satisfy 0 <= low <= 1 <= high")
    check_top_k(signal.top_k)


def check_top_k(top_k: int | None) -> None:
    """Raises HostError."""
    if top_k is not None and top_k < 1:
        raise HostError(f"top_k {top_k} must be at least 1, or None for the whole vocabulary")


def _is_finite(values: Any) -> bool:
    if isinstance(values, torch.Tensor):
        return bool(torch.isfinite(values).all())
    return bool(np.isfinite(values).all())
