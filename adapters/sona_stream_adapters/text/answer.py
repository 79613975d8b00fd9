"""An answer as it grows: what each token adds to its text, and when it is over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .detokenize import Detokenizer, StopStrings

__all__ = ["AnswerText", "token_names"]


class AnswerText:
    """Ends at an end token, at a stop string (neither is shown), or after ``max_tokens``."""

    def __init__(
        self,
        tokenizer: Any,
        prompt_ids: Sequence[int],
        *,
        stop: Sequence[str],
        eos_ids: frozenset[int],
        max_tokens: int,
    ) -> None:
        self.produced = 0
        """tokens so far"""
        self.stopped = False
        """whether a stop string ended it"""
        self._text = Detokenizer(tokenizer, prompt_ids)
        self._stops = StopStrings(stop)
        self._eos_ids = eos_ids
        self._max_tokens = max_tokens

    def take(self, token_id: int) -> tuple[str, str | None]:
        """(text completed by this token, finish reason or None)."""
        self.produced += 1
        if token_id in self._eos_ids:
            return self.rest(), "stop"
        text, self.stopped = self._stops.push(self._text.push(token_id))
        if self.stopped:
            return text, "stop"
        if self.produced >= self._max_tokens:
            return text + self.rest(), "length"
        return text, None

    def rest(self) -> str:
        """What was withheld for a character or a stop string that did not come: the last text."""
        tail, stopped = self._stops.push(self._text.flush())
        return tail + ("" if stopped else self._stops.flush())


def token_names(tokenizer: Any, top: Iterable[tuple[int, float]]) -> dict[str, float]:
    """Token -> log-probability for a client. Of two ids that look alike the first is named."""
    names: dict[str, float] = {}
    for token_id, logprob in top:
        text = tokenizer.decode([token_id])
        if not text or "\ufffd" in text:  # part of a character, or a special token: its name in the vocabulary
            # A head may be padded beyond the vocabulary.
            text = tokenizer.convert_ids_to_tokens(token_id) or f"token_id:{token_id}"
        names.setdefault(text, logprob)
    return names
