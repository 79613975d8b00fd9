"""The model an adapter was learned on: found, and known to be the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from sona_stream.errors import HostError
from sona_stream.lora import AdapterRecord

from ..local.weights import find_model, pull_model
from ..vllm_plugin.fingerprint import fingerprint_of
from .checkpoint import Checkpoint

__all__ = ["fingerprint_in_vllm", "is_hub_name", "open_model"]


def is_hub_name(model: str) -> bool:
    """Whether other programs find the model under this name, too; else they need its folder."""
    return find_model(model) is None and model.count("/") == 1


def open_model(record: AdapterRecord, model: str) -> Checkpoint:
    """`model`: a folder, a pulled model's name, or a hub id. Raises ModelUnavailable when it cannot be had,
    HostError when it is not the one that the adapter was learned on.
    """
    folder: Path = pull_model(model)
    checkpoint = Checkpoint(folder)
    name = f"adapter {record.key}@{record.version}"
    if record.weights.hidden_dim != checkpoint.hidden_dim:
        raise HostError(
            f"{name} is for hidden states of {record.weights.hidden_dim} numbers, those of {model} have "
            f"{checkpoint.hidden_dim}: it was learned on another model"
        )
    served = fingerprint_in_vllm(checkpoint)
    if record.fingerprint == served:
        return checkpoint
    loaded = checkpoint.fingerprint()
    if record.fingerprint != loaded:
        raise HostError(
            f"{name} was learned on the model {record.fingerprint}, but {model} is {loaded} (in vLLM {served}): "
            "name the model that it was learned on"
        )
    return checkpoint


def fingerprint_in_vllm(checkpoint: Checkpoint) -> str:
    """As the plug-in inside vLLM computes it from the model that it serves."""
    text = checkpoint.config.get_text_config()
    quantised = getattr(checkpoint.config, "quantization_config", None)
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    config = SimpleNamespace(hf_config=checkpoint.config, hf_text_config=text, quantization=method)
    config.model = str(checkpoint.folder)
    return fingerprint_of(
        SimpleNamespace(named_parameters=checkpoint.norms),
        SimpleNamespace(weight=checkpoint.head_weight()),
        config,
        vocabulary=checkpoint.tokenizer().get_vocab(),
    )
