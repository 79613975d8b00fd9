"""The bundled embedder: the weighted mean of one vector per WordPiece token. Numpy only, no download.

The table is distilled from all-MiniLM-L6-v2 (see `distill`); an order of magnitude below a contextual encoder in
latency, and blind to word order: right for patterns, too coarse for telling near misses apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import numpy as np
from numpy.typing import NDArray

from sona_stream.errors import StateError

from .options import check_options, text
from .wordpiece import clip, load_tokenizer, well_formed

if TYPE_CHECKING:
    from .source_wheels import Progress

__all__ = ["StaticEmbedder", "create_embedder", "distill"]

_DATA = Path(__file__).parent / "data"
_INLINE_CHARS = 4096
"""Up to this much text is embedded on the event loop (under 1 ms); more goes to a thread."""


class StaticEmbedder:
    """`table` (V, dim) int8, `scales` (V,) float32: row i is worth ``scales[i] * table[i]``.

    A token's weight (SIF: rare words count more) is part of its scale; tokens that say nothing have scale 0.
    Thread-safe: nothing changes after construction.
    """

    name = "static-minilm-256"

    def __init__(self, folder: Path = _DATA) -> None:
        """Maps the table in `folder`. Raises StateError when the files do not fit together."""
        try:
            # asarray: the plain view of the mapped pages; indexing a np.memmap costs microseconds each time
            self._table: NDArray[np.int8] = np.asarray(np.load(folder / "table.npy", mmap_mode="r"))
            self._scales: NDArray[np.float32] = np.load(folder / "scales.npy")
        except (OSError, ValueError) as error:
            raise StateError(f"the embedding table in {folder} cannot be read: {error}") from error
        if (
            self._table.ndim != 2
            or self._table.dtype != np.int8
            or self._scales.dtype != np.float32
            or self._scales.shape != self._table.shape[:1]
        ):
            raise StateError(
                f"the embedding table in {folder} must be int8 (V, dim) with float32 scales (V,), "
                f"got {self._table.dtype} {self._table.shape} and {self._scales.dtype} {self._scales.shape}"
            )
        self.dim = int(self._table.shape[1])
        self._tokenizer = load_tokenizer()
        if self._tokenizer.get_vocab_size() != len(self._scales):
            raise StateError(
                f"the embedding table in {folder} has {len(self._scales)} rows, "
                f"the vocabulary {self._tokenizer.get_vocab_size()}"
            )

    def embed_one(self, query: str) -> NDArray[np.float32]:
        """(dim,) of unit length; zeros when no token of `query` has a meaning in the table."""
        ids = self._tokenizer.encode(well_formed(clip(query)), add_special_tokens=False).ids
        vector: NDArray[np.float32] = self._scales[ids] @ self._table[ids].astype(np.float32)
        norm = float(np.sqrt(vector @ vector))
        return vector / np.float32(norm) if norm > 0.0 else vector

    def embed_many(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n,) texts -> (n, dim)."""
        out = np.empty((len(texts), self.dim), np.float32)
        for row, query in enumerate(texts):
            out[row] = self.embed_one(query)
        return out

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n,) texts -> (n, dim), rows of unit length or zero. Long texts count by their two ends."""
        if sum(min(len(query), _INLINE_CHARS) for query in texts) <= _INLINE_CHARS:
            return self.embed_many(texts)
        return await anyio.to_thread.run_sync(self.embed_many, list(texts))


def create_embedder(options: Mapping[str, Any], settings: Any = None) -> StaticEmbedder:
    """`options`: ``path``, a folder written by `distill` (default: the bundled table)."""
    check_options("static", options, {"path"})
    return StaticEmbedder(Path(text(options, "path")).expanduser() if "path" in options else _DATA)


def distill(output_dir: Path, *, progress: Progress | None = None, source_wheel: Path | None = None) -> Path:
    """Builds the table anew into `output_dir`: see `sona_stream_adapters.embedders.distill`."""
    from .distill import distill as build

    return build(output_dir, progress=progress, source_wheel=source_wheel)
