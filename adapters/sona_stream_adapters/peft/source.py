"""The model an adapter was learned on: found, and known to be the same."""

from __future__ import annotations

from pathlib import Path

from sona_stream.errors import HostError
from sona_stream.lora import AdapterRecord

from ..local.weights import find_model, pull_model
from .checkpoint import Checkpoint

__all__ = ["is_hub_name", "open_model"]


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
    found = checkpoint.fingerprint()
    if found != record.fingerprint:
        raise HostError(
            f"{name} was learned on the model {record.fingerprint}, but {model} is {found}: "
            "name the model that it was learned on"
        )
    return checkpoint
