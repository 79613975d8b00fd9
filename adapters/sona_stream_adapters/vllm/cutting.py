"""The part of a capture that is its answer's."""

from __future__ import annotations

import dataclasses

from sona_stream.lora import Capture

__all__ = ["first_tokens"]

_ROWS = ("token_ids", "hidden", "logprobs", "adapter_versions", "memory")


def first_tokens(capture: Capture, count: int) -> Capture:
    """So many of them. Without a handle, for that names the whole: it is kept anew when something is computed."""
    rows = {name: rows[:count] for name in _ROWS if (rows := getattr(capture, name)) is not None}
    return dataclasses.replace(capture, handle=None, **rows)
