"""The mean bias against its formula and against every other choice of as many tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from learned_adapter import judged_answers
from safetensors.torch import load_file, save_file

from sona_stream.errors import HostError
from sona_stream_adapters.peft import export_logit_bias
from sona_stream_adapters.peft.checkpoint import Checkpoint
from sona_stream_adapters.peft.mean_bias import mean_bias
from sona_stream_adapters.vllm_plugin.logit_bias.file import Limits, read_bias


@pytest.fixture
def answers(model, make_record):
    return judged_answers(model, make_record().fingerprint)


def states(answers):
    return np.concatenate([one.hidden for one in answers])


def exact(model, record, hidden):
    """W M h-bar in float64, shifted to zero mean under the tokens' mean probability; base and adapted logits."""
    W = model.get_output_embeddings().weight.detach().double()
    h = torch.from_numpy(hidden).double()
    h2 = h + torch.from_numpy(record.weights.delta(hidden)).double()
    base, adapted = h @ W.T, h2 @ W.T
    mass = (base.softmax(1) + adapted.softmax(1)).mean(0) / 2
    bias = W @ (h2 - h).mean(0)
    return bias - (mass * bias).sum(), mass, base, adapted


def kl(p, q):
    return float((p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1).mean())


def test_it_is_the_mean_effect(model, folder, make_record, answers):
    record, hidden = make_record(), states(answers)
    made = mean_bias(record, hidden, Checkpoint(folder))
    bias, _, base, adapted = exact(model, record, hidden)
    assert made.token_ids.tolist() == list(range(320))
    assert np.abs(made.bias.numpy() - bias.numpy()).max() < 1e-4
    assert made.kl_base == pytest.approx(kl(adapted, base), rel=1e-4)
    assert made.kl_bias == pytest.approx(kl(adapted, base + bias), rel=1e-4)
    assert made.states == 30


def test_the_tokens_that_matter_are_kept(model, folder, make_record, answers):
    record, hidden = make_record(), states(answers)
    made = mean_bias(record, hidden, Checkpoint(folder), limits=Limits(tokens=20))
    bias, mass, base, adapted = exact(model, record, hidden)
    assert set(made.token_ids.tolist()) == set((mass * bias**2).topk(20).indices.tolist())
    largest = torch.zeros(320).double()
    ids = bias.abs().topk(20).indices
    largest[ids] = bias[ids]
    assert made.kl_bias < kl(adapted, base + largest)


def test_entries_are_cut(folder, make_record, answers):
    made = mean_bias(make_record(), states(answers), Checkpoint(folder), limits=Limits(bias=0.25))
    assert float(made.bias.abs().max()) == 0.25


def test_an_adapter_that_acts_as_a_bias_is_one(folder, make_record, answers):
    """Its first row of A is the mean state, as at birth, and all states are alike: the bias is all of it."""
    record = make_record(1, 0)
    hidden = np.repeat(states(answers)[:1], 5, axis=0)
    made = mean_bias(record, hidden, Checkpoint(folder))
    assert made.kl_base > 1e-3
    assert made.kl_bias < 1e-6 * made.kl_base


def test_states_that_the_host_kept_to_itself_are_found_again(folder, make_record, answers, tmp_path):
    record = make_record()
    bare = [dataclasses.replace(one, hidden=np.empty((0, 48), np.float32)) for one in answers]
    for name, kept in (("with", answers), ("without", bare)):
        export_logit_bias(record, model=str(folder), out=tmp_path / name, captures=lambda kept=kept: kept)
    (one,), (two,) = (list((tmp_path / name).iterdir()) for name in ("with", "without"))
    first, second = (read_bias(path, Limits(), vocab_size=320) for path in (one, two))
    assert np.abs(first.bias - second.bias).max() < 1e-4


def test_another_model_is_refused(folder, make_record, answers, tmp_path):
    record = make_record(fingerprint="sha256:0123")
    kept = [dataclasses.replace(one, fingerprint="sha256:0123") for one in answers]
    with pytest.raises(HostError, match="sha256:0123"):
        export_logit_bias(record, model=str(folder), out=tmp_path, captures=lambda: kept)
    assert list(tmp_path.iterdir()) == []


def test_scale_and_cap_of_an_architecture_count(tmp_path, make_record, model):
    """Gemma 2 caps its logits: the mean of the difference, not W times the mean."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=320,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=24,
        final_logit_softcapping=3.0,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    W = tensors["model.embed_tokens.weight"] = 30 * tensors["model.embed_tokens.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    record, hidden = make_record(), np.random.default_rng(0).standard_normal((20, 48)).astype(np.float32)
    h = torch.from_numpy(hidden)
    adapted = torch.tanh((h + torch.from_numpy(record.weights.delta(hidden))) @ W.T / 3) * 3
    base = torch.tanh(h @ W.T / 3) * 3
    wanted = (adapted - base).double().mean(0)
    wanted -= ((base.softmax(1) + adapted.softmax(1)).double().mean(0) / 2 * wanted).sum()
    made = mean_bias(record, hidden, Checkpoint(tmp_path))
    assert (made.bias.double() - wanted).abs().max() < 1e-4
