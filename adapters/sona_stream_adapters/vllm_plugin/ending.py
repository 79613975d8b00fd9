"""Where an answer ends. Its rows may go on: vLLM schedules a step before it has seen the tokens of the last, and
accepts several drafts in one. What was drawn after the end was given to nobody.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

__all__ = ["Ending"]


@dataclasses.dataclass(frozen=True, slots=True)
class Ending:
    """As vLLM's scheduler ends a request. Stop strings are not known here: its front end finds them in the text."""

    token_ids: frozenset[int] = frozenset()
    """each ends it"""
    least: int = 0
    """tokens before which none of them does"""
    most: int | None = None
    """tokens after which it ends"""

    @classmethod
    def of(cls, params: Any) -> Ending:
        """Of vLLM's `SamplingParams`. Whatever a version of it does not tell ends nothing here."""
        ends = set(getattr(params, "stop_token_ids", None) or ())
        if (eos := getattr(params, "eos_token_id", None)) is not None:  # None also where it is to be ignored
            ends.add(eos)
        return cls(frozenset(ends), getattr(params, "min_tokens", 0), getattr(params, "max_tokens", None))

    def length(self, token_ids: Sequence[int]) -> int:
        """How many of these the answer has."""
        for i, token_id in enumerate(token_ids[: self.most], 1):
            if token_id in self.token_ids and i >= self.least:
                return i
        return len(token_ids) if self.most is None else min(len(token_ids), self.most)
