"""The name of a model's weights, numbers and tokenizer: what an adapter was made for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["model_fingerprint"]

# What shapes the computation; the rest of a config (version strings, paths) may change without changing the model.
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
    "layer_norm_epsilon",
    "rope_theta",
    "tie_word_embeddings",
    "vocab_size",
)
_PROBE = "The tokenizer's own merges, 1234 + 5678; naïve ↔ 漢字\n\n  def f(x): return x"


def model_fingerprint(parameters: Iterable[tuple[str, torch.Tensor]], config: Any, tokenizer: Any) -> str:
    """sha256 over every parameter as loaded, the config's numbers, and the tokenizer's vocabulary and merges.

    `parameters`: the model's state dict in float32, sorted by name, tied weights under each of their names. They
    may come one by one: each is looked at once and let go.
    """
    digest = hashlib.sha256()
    for key, value in parameters:
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().contiguous().numpy().data)
    numbers = {key: getattr(config, key, None) for key in _CONFIG_KEYS}
    numbers["rope"] = getattr(config, "rope_parameters", None)
    digest.update(json.dumps(numbers, sort_keys=True, default=str).encode())
    digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    digest.update(json.dumps(tokenizer(_PROBE)["input_ids"]).encode())
    return f"sha256:{digest.hexdigest()}"
