"""Which engine holds which captures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from .engines import Engines, require
from .messages import Unanswered

__all__ = ["Part", "parts_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """Captures of one engine, for one call."""

    engine: int
    places: list[int]
    """Of its captures, in the question's order."""
    handles: list[str]
    tokens: int


async def parts_of(engines: Engines, handles: Sequence[str], tokens: Sequence[int]) -> list[Part]:
    """One part an engine that holds any. Raises Unanswered (410) naming the handles that no engine holds."""
    owners = await _owners(engines, handles)
    parts: list[Part] = []
    for engine in range(len(engines)):
        places = [i for i, owner in enumerate(owners) if owner == engine]
        if places:
            parts.append(Part(engine, places, [handles[i] for i in places], sum(tokens[i] for i in places)))
    return parts


async def _owners(engines: Engines, handles: Sequence[str]) -> list[int]:
    if len(engines) == 1:
        return [0] * len(handles)
    owner: dict[str, int] = {}
    for index, result in enumerate(await engines.all("sona_hidden_space", list(handles))):
        missing = result.get("gone")
        if missing is None:
            require(result)
        for handle in set(handles) - set(missing or ()):
            owner.setdefault(handle, index)
    gone = [handle for handle in dict.fromkeys(handles) if handle not in owner]
    if gone:
        raise Unanswered(
            410,
            "no engine holds these captures any more; SONA_VLLM_CAPTURE_MB bounds them",
            kind="capture_gone",
            gone=gone,
        )
    return [owner[handle] for handle in handles]
