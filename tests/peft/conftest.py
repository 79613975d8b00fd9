from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from learned_adapter import KEY, random_weights
from tiny_model import save_tiny_model

from sona_stream.lora import AdapterRecord
from sona_stream_adapters.peft.checkpoint import Checkpoint


@pytest.fixture(scope="session")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a head of its own; parametrised indirectly with "tied": without one."""
    name = getattr(request, "param", "untied")
    return save_tiny_model(tmp_path_factory.mktemp(name), tie_word_embeddings=name == "tied")


@pytest.fixture(scope="session")
def model(folder: Path) -> Any:
    """The same through transformers alone."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def make_record(folder: Path) -> Callable[..., AdapterRecord]:
    fingerprint = Checkpoint(folder).fingerprint()

    def make(
        rank: int = 2, base: int = 4, *, dim: int = 48, seed: int = 0, scale: float = 0.1, **changes: Any
    ) -> AdapterRecord:
        values = {"key": KEY, "version": 3, "parent": 2, "fingerprint": fingerprint, "reason": "step"}
        weights = random_weights(dim, rank, base, seed, scale)
        return AdapterRecord(**{"weights": weights, "feedback_ids": ("f1",), **values, **changes})

    return make
