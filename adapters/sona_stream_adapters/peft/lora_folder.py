"""An adapter as a standard PEFT folder.

    h' = h + s_m B_m A_m h + s_b B_b A_b h,  logits = W h'     is a LoRA on lm_head with
    lora_A = [A_m; A_b]  (r, d),  lora_B = W [s_m B_m, s_b B_b]  (V, r),  alpha = r

(LoRA: Hu et al. 2021, https://arxiv.org/abs/2106.09685; files: https://huggingface.co/docs/peft/developer_guides/checkpoint)
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from sona_stream.errors import HostError, InvalidRequest
from sona_stream.lora import AdapterRecord, LoraWeights

from .card import model_card
from .checkpoint import Checkpoint
from .source import is_hub_name, open_model

__all__ = ["RANKS", "lora_factors", "own_rank", "write_lora_folder"]

RANKS = (8, 16, 32, 64, 128)
"""what stock vLLM takes as its ``--max-lora-rank``"""


def write_lora_folder(record: AdapterRecord, *, model: str, out: Path) -> Sequence[str]:
    """Write `out`, which must not exist or be empty, whole or not at all. -> what to tell the person.

    Raises InvalidRequest naming ``out``; ModelUnavailable and HostError as `open_model`.
    """
    _require_empty(out)
    checkpoint = open_model(record, model)
    rank = _padded_rank(record)
    _require_space(out, 4 * rank * (checkpoint.vocab_size + checkpoint.hidden_dim))
    lora_A, lora_B = lora_factors(record.weights, checkpoint, rank)
    with _whole_folder(out) as folder:
        prefix = f"base_model.model.{checkpoint.head_name}"
        tensors = {f"{prefix}.lora_A.weight": lora_A, f"{prefix}.lora_B.weight": lora_B}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        base = model if is_hub_name(model) else str(checkpoint.folder.absolute())
        config = json.dumps(_config(checkpoint, base, rank), indent=2)
        (folder / "adapter_config.json").write_text(f"{config}\n", encoding="utf-8")
        card = model_card(record, checkpoint, model=base, rank=rank, own=own_rank(record.weights), name=out.name)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return (
        f"{out}: adapter {record.key}@{record.version} as a PEFT LoRA of rank {rank} on {checkpoint.head_name}",
        "not in it: the memory of episodes (what corrections said word by word); README.md says how to serve it",
    )


def lora_factors(weights: LoraWeights, checkpoint: Checkpoint, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(lora_A (rank, d), lora_B (V, rank)) float32, zero beyond the adapter's own rank; products in float64."""
    pairs = [weights.micro] if weights.base is None else [weights.micro, weights.base]
    A = np.concatenate([pair.lora_A for pair in pairs])
    B = torch.from_numpy(np.concatenate([pair.scaling * pair.lora_B.astype(np.float64) for pair in pairs], axis=1))
    lora_A = torch.zeros(rank, checkpoint.hidden_dim)
    lora_A[: len(A)] = torch.from_numpy(A)
    lora_B = torch.zeros(checkpoint.vocab_size, rank)
    start = 0
    for rows in checkpoint.head_rows():
        lora_B[start : start + len(rows), : len(A)] = (rows.double() @ B).float()
        start += len(rows)
    if not (torch.isfinite(lora_A).all() and torch.isfinite(lora_B).all()):
        raise HostError("the adapter or the model's lm_head holds numbers that are not finite")
    return lora_A, lora_B


def own_rank(weights: LoraWeights) -> int:
    """Of both pairs together, before padding."""
    return len(weights.micro.lora_A) + (0 if weights.base is None else len(weights.base.lora_A))


def _padded_rank(record: AdapterRecord) -> int:
    own = own_rank(record.weights)
    for rank in RANKS:
        if own <= rank:
            return rank
    raise HostError(f"adapter {record.key}@{record.version} has rank {own}; at most {RANKS[-1]} can be exported")


def _config(checkpoint: Checkpoint, model: str, rank: int) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": [checkpoint.head_name],
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }


def _require_empty(out: Path) -> None:
    if out.is_dir():
        if any(out.iterdir()):
            raise InvalidRequest(f"{out} is not empty; name a new folder", param="out")
    elif out.exists() or out.is_symlink():
        raise InvalidRequest(f"{out} exists and is not a folder; name a new folder", param="out")


def _require_space(out: Path, need: int) -> None:
    there = out.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < need + 1_000_000:
        raise InvalidRequest(
            f"the disk of {out} is full: {need / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free", param="out"
        )


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place once everything is written."""
    stage: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        yield stage
        stage.chmod(0o755)
        if out.is_dir():
            out.rmdir()  # empty; not every platform renames onto a folder
        os.rename(stage, out)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        raise InvalidRequest(f"{out} cannot be written: {reason}", param="out") from error
    finally:
        if stage is not None and stage.exists():
            shutil.rmtree(stage, ignore_errors=True)
