"""Text as the learner sees it: segments of `LENGTH` tokens with the frozen model's final hidden states.

Each segment is a context of its own (nothing is attended to across segments), and every token of the stream but the
first is predicted once. The forward pass is made once a domain and kept on disk, so that arms are cheap.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sona_stream.config.folders import cache_dir
from sona_stream.lora import Capture
from sona_stream_adapters.head import DenseHead
from sona_stream_adapters.local.model import LanguageModel, load_model
from sona_stream_adapters.local.weights import find_model

from .stream_text import texts

__all__ = ["LENGTH", "MODEL", "FrozenModel", "as_capture"]

MODEL = "smollm2-135m-instruct"
LENGTH = 256
_ROWS = 4  # segments in one forward pass


class FrozenModel:
    """The model whose last layer learns; loaded when first needed."""

    def __init__(self, name: str = MODEL, folder: Path | None = None) -> None:
        self._name, self._folder = name, folder
        self._loaded: LanguageModel | None = None

    @property
    def model(self) -> LanguageModel:
        """Raises RuntimeError when its weights are not here."""
        if self._loaded is None:
            folder = self._folder or find_model(self._name)
            if folder is None:
                raise RuntimeError(f"the weights are missing: sona-stream models pull {self._name}")
            self._loaded = load_model(folder, name=self._name)
        return self._loaded

    def head(self) -> DenseHead:
        """Its lm_head, as the local host takes it."""
        return DenseHead(self.model.lm_head, self.model.lm_bias, packed=self.model.packed_head)

    def segments(self, domain: str, data: Path, count: int, *, first: int = 0) -> list[Capture]:
        """Segments first..first+count-1 of a domain, from disk when they are there. Raises ValueError when the text
        is too short.
        """
        ids = self._ids(domain, data, (first + count) * LENGTH + 1)[first * LENGTH :]
        name = hashlib.blake2b(ids.tobytes(), digest_size=12).hexdigest()
        file = cache_dir() / "benchmarks" / "segments" / self.model.fingerprint.replace(":", "-") / f"{name}.npy"
        windows = ids[:-1].reshape(count, LENGTH)
        if file.is_file():
            hidden = np.load(file)
        else:
            hidden = self._forward(windows)
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part.npy")
            np.save(part, hidden)
            part.replace(file)
        labels = ids[1:].reshape(count, LENGTH)
        return [
            as_capture(f"{domain}:{first + i}", self.model.fingerprint, *row)
            for i, row in enumerate(zip(hidden, labels, strict=True))
        ]

    def _ids(self, domain: str, data: Path, wanted: int) -> NDArray[np.int64]:
        found: list[int] = []
        for text in texts(domain, data):
            found += self.model.tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(found) >= wanted:
                return np.asarray(found[:wanted], dtype=np.int64)
        raise ValueError(f"{domain}: {len(found)} tokens of text, {wanted} are needed")

    @torch.inference_mode()
    def _forward(self, windows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, LENGTH) ids -> (n, LENGTH, d)."""
        parts = []
        for at in range(0, len(windows), _ROWS):
            ids = torch.from_numpy(windows[at : at + _ROWS])
            parts.append(self.model.prefill(ids, self.model.new_cache(len(ids))).numpy().copy())
        return np.concatenate(parts).astype(np.float32)


def as_capture(name: str, fingerprint: str, hidden: NDArray[np.float32], labels: NDArray[Any]) -> Capture:
    """A segment as if it were an answer. Nobody drew its tokens: its log-probabilities are unused zeros."""
    tokens = len(labels)
    return Capture(
        request_id=name,
        fingerprint=fingerprint,
        prompt_ids=np.zeros(1, np.int32),
        token_ids=np.asarray(labels, dtype=np.int32),
        hidden=hidden,
        logprobs=np.zeros(tokens, np.float32),
        adapter_versions=np.zeros(tokens, np.int32),
    )
