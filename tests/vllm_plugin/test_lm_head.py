"""How heads are described: whole, spread over ranks, and out of reach. Ranks are threads here."""

from __future__ import annotations

import threading
import types

import numpy as np
import pytest
import torch
from fake_vllm import weights
from torch import nn

from sona_stream.errors import HostError
from sona_stream.lora import TokenSignal
from sona_stream_adapters.head import BaseLogits, Batch, CapturedTokens, Job, Scratch, gradient
from sona_stream_adapters.vllm_plugin.lm_head import describe_head, without_lora

D, V, PADDED = 8, 30, 32


def model_of(weight, *, scale=1.0, soft_cap=None, tp_size=1, shard=None):
    model = nn.Module()
    model.lm_head = nn.Module()
    model.lm_head.weight = nn.Parameter(weight, requires_grad=False)
    model.lm_head.tp_size = tp_size
    if shard is not None:
        model.lm_head.shard_indices = types.SimpleNamespace(
            org_vocab_start_index=shard[0], org_vocab_end_index=shard[1]
        )
    model.logits_processor = nn.Module()
    model.logits_processor.scale, model.logits_processor.soft_cap = scale, soft_cap
    return model


def logits_of(W, scale=1.0, soft_cap=None):
    def logits(hidden):
        raw = hidden @ W.T
        raw = raw if soft_cap is None else torch.tanh(raw / soft_cap) * soft_cap
        return raw * scale

    return logits


def describe(model, logits, **more):
    facts = {"hidden_dim": D, "vocab_size": V, "dtype": torch.float32, "device": torch.device("cpu")}
    return describe_head(model, logits, **facts, **more)


@pytest.fixture
def W():
    return torch.randn(PADDED, D, generator=torch.Generator().manual_seed(1))


def lesson(seed=3):
    rng = np.random.default_rng(seed)
    hidden = torch.tensor(rng.standard_normal((6, D)), dtype=torch.float32)
    ids = torch.tensor(rng.integers(0, V, 6))
    signal = TokenSignal(weights=weights(D), advantages=[np.linspace(-1, 1, 6, dtype=np.float32)], anchor=0.2)
    return CapturedTokens("r", hidden, ids, torch.zeros(6), 0.7), signal


def gradient_of(head):
    captured, signal = lesson()
    return Job(gradient(BaseLogits(head, max_bytes=0), Batch([captured]), signal, Scratch())).run()


def test_padding_scale_and_cap_are_taken_from_the_model(W):
    for scale, cap in ((1.0, None), (0.5, 3.0)):
        found = describe(model_of(W, scale=scale, soft_cap=cap), logits_of(W[:V], scale, cap))
        assert found.note == ""
        assert found.head.vocab_size == V


def test_a_head_that_says_something_else_is_asked_instead(W):
    found = describe(model_of(W * 1.1), logits_of(W[:V]))
    assert "top-k mode" in found.note
    rows = Job(found.head.rows(torch.tensor([3, 17]))).run()
    assert torch.allclose(rows.weight, W[[3, 17]], atol=1e-5)
    with pytest.raises(HostError, match="soft cap"):
        describe(model_of(W * 1.1, soft_cap=3.0), logits_of(W[:V], soft_cap=3.0))


def test_vllms_own_lora_is_off_the_head_outside_a_step(W):
    """Its wrap fails before the first step, and would add the last batch's adapters later."""

    class Wrapped(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base_layer = base
            self.scale, self.soft_cap = base.scale, base.soft_cap

        def forward(self, hidden):
            raise IndexError("no rows are known")

    model = model_of(W)
    model.logits_processor.forward = logits_of(W[:V])
    model.logits_processor = wrapped = Wrapped(model.logits_processor)

    def compute_logits(hidden):
        return model.logits_processor(hidden)

    def outside(hidden):
        with without_lora(model):
            return compute_logits(hidden)

    with pytest.raises(IndexError):
        compute_logits(torch.zeros(1, D))
    assert describe(model, outside).note == ""
    assert model.logits_processor is wrapped
    with pytest.raises(RuntimeError), without_lora(model):
        raise RuntimeError
    assert model.logits_processor is wrapped


def test_two_ranks_find_the_gradient_of_one(W):
    whole = gradient_of(describe(model_of(W), logits_of(W[:V])).head)
    barrier, parts, found, errors = threading.Barrier(2), [None, None], [None, None], []

    def run(rank):
        def all_reduce(values):
            parts[rank] = values.clone()
            barrier.wait(10)
            total = parts[0] + parts[1]
            barrier.wait(10)
            return total

        try:
            with torch.inference_mode():
                shard = (0, 16) if rank == 0 else (16, V)
                model = model_of(W[rank * 16 : rank * 16 + 16], tp_size=2, shard=shard)
                described = describe(model, logits_of(W[:V]), rank=rank, all_reduce=all_reduce)
                assert described.note == ""
                found[rank] = gradient_of(described.head)
        except Exception as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for one in found:
        assert np.allclose(one.micro_A, whole.micro_A, atol=1e-5)
        assert np.allclose(one.micro_B, whole.micro_B, atol=1e-5)
        assert one.mean_kl_to_base == pytest.approx(whole.mean_kl_to_base, rel=1e-4)
