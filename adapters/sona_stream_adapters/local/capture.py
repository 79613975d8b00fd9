"""What the host remembers of each answer, for as long as its memory allows."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import torch

from sona_stream.errors import CaptureGone
from sona_stream.lora import Capture

__all__ = ["CaptureBuilder", "CaptureRing"]


class CaptureBuilder:
    """Collects one answer's tokens; arrays double as they fill."""

    def __init__(self, hidden_dim: int) -> None:
        self._hidden = np.empty((32, hidden_dim), np.float32)
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._versions: list[int] = []
        self._memory: list[float] = []

    def add(self, hidden: torch.Tensor, token_id: int, logprob: float, version: int, memory: float = 0.0) -> None:
        """`hidden` (d,) is the unadapted state that the token was drawn from; `memory`: see `Capture`."""
        at = len(self._token_ids)
        if at == len(self._hidden):
            self._hidden = np.concatenate([self._hidden, np.empty_like(self._hidden)])
        self._hidden[at] = hidden.numpy()
        self._token_ids.append(token_id)
        self._logprobs.append(logprob)
        self._versions.append(version)
        self._memory.append(memory)

    def __len__(self) -> int:
        return len(self._token_ids)

    def finish(
        self,
        *,
        request_id: str,
        fingerprint: str,
        prompt_ids: list[int],
        adapter_key: str | None,
        temperature: float,
        unadapted: bool = True,
    ) -> Capture:
        """The capture, with arrays of their own; without states where those are not of the unadapted model."""
        return Capture(
            request_id=request_id,
            fingerprint=fingerprint,
            prompt_ids=np.asarray(prompt_ids, np.int32),
            token_ids=np.asarray(self._token_ids, np.int32),
            hidden=self._hidden[: len(self) if unadapted else 0].copy(),
            logprobs=np.asarray(self._logprobs, np.float32),
            adapter_versions=np.asarray(self._versions, np.int32),
            adapter_key=adapter_key,
            temperature=temperature,
            memory=np.asarray(self._memory, np.float32) if any(self._memory) else None,
        )


class CaptureRing:
    """The newest captures within `max_bytes`; the oldest go first. Safe between threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.evictions = max_bytes, 0
        self._bytes = 0
        self._captures: OrderedDict[str, Capture] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, capture: Capture) -> None:
        """Remember; a capture that alone exceeds the limit is not kept."""
        with self._lock:
            self._forget(capture.request_id)
            if capture.nbytes > self.max_bytes:
                self.evictions += 1
                return
            self._captures[capture.request_id] = capture
            self._bytes += capture.nbytes
            while self._bytes > self.max_bytes:
                self._forget(next(iter(self._captures)))
                self.evictions += 1

    def get(self, request_id: str) -> Capture:
        """Raises CaptureGone."""
        with self._lock:
            found = self._captures.get(request_id)
        if found is None:
            raise CaptureGone(
                f"request {request_id!r}: its hidden states are no longer in memory. "
                "sona.learner.capture_mb sets how many are kept"
            )
        return found

    def forget(self, request_id: str) -> None:
        """Unknown ids are fine."""
        with self._lock:
            self._forget(request_id)

    def __len__(self) -> int:
        return len(self._captures)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._bytes

    def _forget(self, request_id: str) -> None:
        gone = self._captures.pop(request_id, None)
        if gone is not None:
            self._bytes -= gone.nbytes
