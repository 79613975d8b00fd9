"""The name of the model that is served: what adapters, episodes and captures were made for.

The same after a restart, and whatever the dtype, the number of ranks or the version of vLLM; another one for other
weights, another quantisation, another tokenizer. Of the weights it reads samples: every file's header and blocks
spread over it, and of what is loaded the norms and rows of the lm_head, so that weights replaced at run time show.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["fingerprint_of"]

logger = logging.getLogger("sona_stream.vllm_plugin")

_CONFIG_KEYS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "tie_word_embeddings",
    "vocab_size",
    "final_logit_softcapping",
    "logit_scale",
)
_BLOCKS, _BLOCK = 64, 4096
_ROWS = 64
_WEIGHT_FILES = ("*.safetensors", "*.gguf", "*.bin", "*.pt")

Gather = Callable[[dict[int, bytes]], list[dict[int, bytes]]]
"""this rank's part -> every rank's parts"""


def fingerprint_of(
    model: Any,
    layer: Any,
    model_config: Any,
    gather: Gather = lambda part: [part],
    vocabulary: Mapping[str, int] | None = None,
) -> str:
    """`layer` is the lm_head, or None. Reads a few MB of the model's files. `vocabulary`: the tokenizer's, where
    this is asked of files outside vLLM.
    """
    digest = hashlib.sha256()
    config = getattr(model_config, "hf_text_config", model_config.hf_config)
    numbers = {key: getattr(config, key, None) for key in _CONFIG_KEYS}
    numbers["rope"] = getattr(config, "rope_parameters", None)
    numbers["quantization"] = getattr(model_config, "quantization", None)
    digest.update(json.dumps(numbers, sort_keys=True, default=str).encode())
    digest.update(_tokenizer(model_config) if vocabulary is None else _hashed(vocabulary))
    digest.update(_files(model_config))
    for name, values in sorted(model.named_parameters()):
        if values.ndim == 1 and "norm" in name and values.numel():
            digest.update(_bytes(values))
    rows: dict[int, bytes] = {}
    for part in gather(_head_rows(layer, int(config.vocab_size))):
        rows |= part
    for row in sorted(rows):
        digest.update(rows[row])
    return f"sha256:{digest.hexdigest()}"


def _bytes(values: torch.Tensor) -> bytes:
    """As bfloat16, so that the dtype served in does not matter."""
    return values.detach().to(torch.bfloat16).contiguous().view(torch.uint8).cpu().numpy().tobytes()


def _head_rows(layer: Any, vocab_size: int) -> dict[int, bytes]:
    """Some of this rank's rows, by token."""
    weight = getattr(layer, "weight", None)
    if weight is None or weight.ndim != 2 or not weight.dtype.is_floating_point:
        return {}
    start, stop = 0, vocab_size
    if int(getattr(layer, "tp_size", 1)) > 1:
        start, stop = layer.shard_indices.org_vocab_start_index, layer.shard_indices.org_vocab_end_index
    step = max(1, vocab_size // _ROWS)
    return {token: _bytes(weight[token - start]) for token in range(0, vocab_size, step) if start <= token < stop}


def _tokenizer(model_config: Any) -> bytes:
    if getattr(model_config, "skip_tokenizer_init", False):
        return b"no tokenizer"
    try:
        from vllm.tokenizers import cached_tokenizer_from_config

        vocabulary = cached_tokenizer_from_config(model_config).get_vocab()
    except Exception as error:
        logger.warning("sona: the tokenizer cannot be read for the fingerprint (%s); its name is used", error)
        return str(model_config.tokenizer).encode()
    return _hashed(vocabulary)


def _hashed(vocabulary: Mapping[str, int]) -> bytes:
    return hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).digest()


def _files(model_config: Any) -> bytes:
    """Of the weights' files, found without a network."""
    digest = hashlib.sha256()
    for path in _weight_files(str(model_config.model), getattr(model_config, "revision", None)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for i in range(_BLOCKS):
                file.seek(size * i // _BLOCKS)
                digest.update(file.read(_BLOCK))
    return digest.digest()


def _weight_files(model: str, revision: str | None) -> list[Path]:
    folder = Path(model)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        try:
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
        except Exception as error:
            logger.warning("sona: the files of %s are not at hand (%s); the fingerprint goes without", model, error)
            return []
    for pattern in _WEIGHT_FILES:
        if found := sorted(folder.glob(pattern)):
            return found
    return []
