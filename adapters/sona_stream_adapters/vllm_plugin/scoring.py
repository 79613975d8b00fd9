"""Log-probabilities of a captured answer, taken when it is asked for: by the model's own lm_head, from the very
states that it was given while the answer was drawn. At the request's temperature, before any cut of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .captures import Kept
from .requests import Tracked

__all__ = ["Scoring"]

_CHUNK = 64
"""tokens a product with the lm_head"""


class Scoring:
    """One answer's, a few tokens at a time, so that decoding waits for no long answer."""

    def __init__(
        self, tracked: Tracked, kept: Kept, served: torch.Tensor, scored: torch.Tensor | None = None
    ) -> None:
        """`kept.logprobs` (T,) is filled in, but where `scored` (T,) says it is known. `served` (T, d)."""
        self.tracked = tracked
        self.kept = kept
        self._served = served
        missing = torch.arange(len(kept)) if scored is None else torch.nonzero(~scored)[:, 0]
        self._missing = missing.to(served.device)
        self._done = 0

    @torch.inference_mode()
    def advance(self, model_logits: Callable[[torch.Tensor], torch.Tensor], tokens: int) -> bool:
        """At most so many more of them. Whether all are known now."""
        stop = min(self._done + tokens, len(self._missing))
        temperature = self.kept.temperature or 1.0
        for start in range(self._done, stop, _CHUNK):
            rows = self._missing[start : min(start + _CHUNK, stop)]
            logits = model_logits(self._served[rows]).float()
            if temperature != 1.0:
                logits = logits / temperature
            labels = self.kept.token_ids[rows].long()[:, None]
            self.kept.logprobs[rows] = logits.gather(1, labels)[:, 0] - torch.logsumexp(logits, 1)
        self._done = stop
        return stop == len(self._missing)
