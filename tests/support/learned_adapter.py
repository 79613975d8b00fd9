"""Adapters as they could have been learned, and the formula that they must compute, for tests of the export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sona_stream.config.settings import SonaSettings
from sona_stream.lora import AdapterRecord, Capture, LoraWeights, LowRank
from sona_stream.store import SqliteStore

KEY = "tiny/acme/*"
PROMPT = [5, 9, 17, 33, 65, 129, 257, 3]


def random_weights(dim: int, rank: int, base: int, seed: int = 0, scale: float = 0.1) -> LoraWeights:
    rng = np.random.default_rng(seed)

    def pair(r: int, scaling: float) -> LowRank:
        A, B = rng.standard_normal((r, dim)), rng.standard_normal((dim, r))
        return LowRank((scale * A).astype(np.float32), (scale * B).astype(np.float32), scaling)

    return LoraWeights(pair(rank, 1.5), pair(base, 0.5) if base else None)


@torch.no_grad()
def oracle(model: Any, weights: LoraWeights, ids: list[int]) -> torch.Tensor:
    """(T, V): W (h + BAh) in float64, from transformers' own final hidden states."""
    hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    adapted = hidden.double()
    for pair in (weights.micro, weights.base):
        if pair is not None:
            A, B = torch.from_numpy(pair.lora_A).double(), torch.from_numpy(pair.lora_B).double()
            adapted = adapted + pair.scaling * (hidden.double() @ A.T) @ B.T
    return adapted @ model.get_output_embeddings().weight.double().T


@torch.no_grad()
def judged_answers(model: Any, fingerprint: str, *, count: int = 3, hidden: bool = True) -> list[Capture]:
    """Kept answers of random tokens, with the states that predicted them."""
    rng = np.random.default_rng(7)
    found = []
    for number in range(count):
        prompt, answer = rng.integers(1, 320, 6), rng.integers(1, 320, 10)
        ids = torch.from_numpy(np.concatenate([prompt, answer])[:-1])[None]
        states = model(ids, output_hidden_states=True).hidden_states[-1][0, 5:].numpy()
        found.append(
            Capture(
                request_id=f"r{number}",
                fingerprint=fingerprint,
                prompt_ids=prompt.astype(np.int32),
                token_ids=answer.astype(np.int32),
                hidden=states if hidden else np.empty((0, states.shape[1]), np.float32),
                logprobs=np.zeros(10, np.float32),
                adapter_versions=np.zeros(10, np.int32),
            )
        )
    return found


async def fill(
    state: Path, records: list[AdapterRecord], current: dict[str, int], captures: Sequence[Capture] = ()
):
    async with SqliteStore(SonaSettings(), directory=state) as store:
        for record in records:
            await store.put_adapter(record)
        for key, version in current.items():
            await store.set_current(key, version, reason="step")
        for capture in captures:
            await store.put_capture(KEY, capture, 1.0, feedback_id=f"f-{capture.request_id}")
