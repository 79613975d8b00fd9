"""What a client's body says, in the words of `sona_stream.events.Request`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..events import Endpoint, Sampling

__all__ = ["DecodedRequest"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DecodedRequest:
    """Fields have the names and meanings they have in `Request`; ``user`` is the body's own claim."""

    endpoint: Endpoint
    model: str
    sampling: Sampling
    messages: tuple[Mapping[str, Any], ...] = ()
    prompt: str | tuple[int, ...] | None = None
    """None for chat, and for completions that hold several prompts or vectors."""
    query: str = ""
    stream: bool = False
    include_usage: bool = False
    constrained: bool = False
    user: str | None = None
    client_ids: tuple[str, ...] = ()
    objections: tuple[tuple[str, str], ...] = ()
