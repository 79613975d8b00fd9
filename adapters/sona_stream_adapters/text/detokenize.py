"""Token ids to text, increment by increment: never half a character, never part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Detokenizer", "StopStrings"]

_LEAD = 4
"""prompt tokens decoded along, so that a tokenizer does not take the answer's first space for a sentence's start"""
_LONGEST_CHARACTER = 8
"""tokens after which an unfinished character is emitted as the replacement character"""
_REPLACEMENT = "\ufffd"


class Detokenizer:
    """Decodes a window of the last tokens twice, with and without the new one, and emits the difference: what a
    token looks like depends on its neighbours.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids[-_LEAD:])
        self._known = len(self._ids)
        self._start = 0

    def push(self, token_id: int) -> str:
        """Text completed by this token; empty while a character is unfinished."""
        self._ids.append(token_id)
        return self._emit(force=len(self._ids) - self._known >= _LONGEST_CHARACTER)

    def flush(self) -> str:
        """What is left at the end, an unfinished character as U+FFFD."""
        return self._emit(force=True)

    def _emit(self, *, force: bool) -> str:
        before = self._decode(self._ids[self._start : self._known])
        after = self._decode(self._ids[self._start :])
        if after.endswith(_REPLACEMENT) and not force:
            return ""
        self._start, self._known = self._known, len(self._ids)
        if self._start > 4 * _LONGEST_CHARACTER:
            del self._ids[: self._start]
            self._known -= self._start
            self._start = 0
        return after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class StopStrings:
    """Withholds text that may turn out to be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text to emit, whether a stop string was met). The stop string itself is never emitted."""
        if not self._stops:
            return text, False
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            out, self._held = self._held[: min(found)], ""
            return out, True
        keep = max(self._overlap(stop) for stop in self._stops)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out, False

    def flush(self) -> str:
        """What was withheld for nothing."""
        out, self._held = self._held, ""
        return out

    def _overlap(self, stop: str) -> int:
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
