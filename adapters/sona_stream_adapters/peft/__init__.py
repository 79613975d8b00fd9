"""Exports: a learned adapter as files that a stock server takes, without this program at the other end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sona_stream.errors import HostError, PluginError

if TYPE_CHECKING:
    from sona_stream.lora import AdapterRecord, Capture

__all__ = ["export_logit_bias", "export_peft"]


def export_peft(
    record: AdapterRecord, *, model: str, out: Path, captures: Callable[[], Sequence[Capture]]
) -> Sequence[str]:
    """The exporter `peft`: a PEFT folder with one LoRA on lm_head, equal to the adapter."""
    _require(record)
    from .lora_folder import write_lora_folder

    return write_lora_folder(record, model=model, out=out)


def export_logit_bias(
    record: AdapterRecord, *, model: str, out: Path, captures: Callable[[], Sequence[Capture]]
) -> Sequence[str]:
    """The exporter `logit-bias`: the adapter's mean effect as one file a tenant, for vLLM's logits processors."""
    _require(record)
    from .mean_bias import write_mean_bias

    return write_mean_bias(record, captures(), model=model, out=out)


def _require(record: AdapterRecord) -> None:
    if record.weights.layers:
        raise HostError(
            f"adapter {record.key}@{record.version} changes the outputs of layers {sorted(record.weights.layers)}: "
            "a change of lm_head cannot say that. It serves on a local model (litellm_params.layers)"
        )
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise PluginError(f"the export needs {' and '.join(missing)}; try: pip install 'sona-stream[local]'")
