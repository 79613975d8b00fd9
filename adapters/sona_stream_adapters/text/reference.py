"""The token ids of the text that a model's hidden states are standardised by."""

from __future__ import annotations

from typing import Any

from sona_stream.reference import REFERENCE_TEXT, REFERENCE_VERSION

__all__ = ["REFERENCE_TEXT", "REFERENCE_VERSION", "reference_ids"]

LEAD = 16
MOST = 512


def reference_ids(tokenizer: Any, room: int) -> tuple[list[int], list[int]]:
    """(the beginning, the rest) of the text in at most `room` tokens: states are taken over the rest, since a first
    token's are like no other's. The same tokenizer and room give the same ids. Raises ValueError when there is no
    room for any.
    """
    ids = [int(one) for one in tokenizer.encode(REFERENCE_TEXT, add_special_tokens=False)][: min(room, MOST)]
    lead = min(LEAD, len(ids) // 2)
    if lead < 1:
        raise ValueError(f"a context of {room} tokens has no room for the reference text")
    return ids[:lead], ids[lead:]
