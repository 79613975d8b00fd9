"""Ragged decoding against the model's own forward pass over the whole sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import VOCAB, save_tiny_model

from sona_stream.errors import ModelUnavailable
from sona_stream_adapters.local.kv_cache import BLOCK, SlotCache
from sona_stream_adapters.local.model import load_model


def whole(reference, ids):
    """Final hidden state of the last token, by transformers, without a cache."""
    return reference.get_decoder()(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]


def prefilled(model, ids, chunk):
    cache = model.new_cache()
    for start in range(0, len(ids), chunk):
        hidden = model.prefill(torch.tensor([ids[start : start + chunk]]), cache)
    return cache, hidden[0, -1]


@pytest.mark.parametrize("chunk", [1, 7, 500])
def test_prefill_in_chunks(tiny, reference, chunk):
    ids = np.random.default_rng(0).integers(1, VOCAB, 2 * BLOCK + 3).tolist()
    with torch.inference_mode():
        _, hidden = prefilled(tiny, ids, chunk)
        torch.testing.assert_close(hidden, whole(reference, ids), rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_rows_come_and_go_at_any_time(tiny, reference, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    batch, rows = tiny.new_cache(), []
    with torch.inference_mode():
        for _ in range(data.draw(st.integers(2, 12))):
            action = data.draw(st.sampled_from(["join", "leave", "step", "step"]))
            if action == "join" and len(rows) < 5:
                ids = rng.integers(1, VOCAB, rng.integers(1, BLOCK + 10)).tolist()
                cache, _ = prefilled(tiny, ids, 64)
                assert batch.adopt(cache, 0, len(ids)) == len(rows)
                rows.append(ids)
            elif action == "leave" and rows:
                row = data.draw(st.integers(0, len(rows) - 1))
                batch.drop(row)
                last = rows.pop()
                if row < len(rows):
                    rows[row] = last
            elif action == "step" and rows:
                tokens = rng.integers(1, VOCAB, len(rows))
                hidden = tiny.step(torch.from_numpy(tokens), batch)
                for ids, token in zip(rows, tokens.tolist(), strict=True):
                    ids.append(token)
                expected = torch.stack([whole(reference, ids) for ids in rows])
                torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)
            assert batch.lengths == [len(ids) for ids in rows]


def test_a_long_answer_is_not_paid_for_after_it_ended(tiny):
    batch = SlotCache(tiny.layers, rows=2)
    with torch.inference_mode():
        cache, _ = prefilled(tiny, [1] * 500, 500)
        small, _ = prefilled(tiny, [1] * 3, 500)
        batch.adopt(cache, 0, 500)
        batch.adopt(small, 0, 3)
        big = batch.layers[0].keys.numel()
        batch.drop(0)
        batch.drop(0)
        batch.adopt(small, 0, 3)
    assert batch.layers[0].keys.numel() * 8 == big


@pytest.mark.parametrize("kind", ["phi", "qwen2", "gpt_neox", "mistral", "gpt2"])
def test_other_architectures_decode_the_same_way(tiny_folder, tmp_path, kind):
    """Rotary on a part of the head and an lm_head bias (phi), biases in attention, parallel blocks, a window,
    learned positions.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        **({"num_key_value_heads": 2} if kind not in ("gpt_neox", "gpt2") else {}),
        **({"sliding_window": 32} if kind == "mistral" else {}),
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = load_model(tmp_path, name=kind)  # checks ragged decoding against the model's own forward pass
    assert model.context == (32 if kind == "mistral" else 128)
    assert (model.lm_bias is not None) == (kind == "phi")


def test_a_model_whose_logits_are_capped_is_refused(tiny_folder, tmp_path):
    from transformers import AutoTokenizer, CohereConfig, CohereForCausalLM

    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path)
    config = CohereConfig(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        logit_scale=0.25, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    CohereForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelUnavailable, match="logits are not lm_head"):
        load_model(tmp_path, name="cohere")


def test_the_fingerprint_names_weights_tokenizer_and_config(tiny, tiny_folder, tmp_path):
    assert load_model(tiny_folder, name="again").fingerprint == tiny.fingerprint
    other = save_tiny_model(tmp_path / "other", seed=1)
    theta = save_tiny_model(tmp_path / "theta", rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    prints = {load_model(folder, name="x").fingerprint for folder in (tiny_folder, other, theta)}
    assert len(prints) == 3


def test_a_folder_that_is_no_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(ModelUnavailable, match="cannot be loaded"):
        load_model(tmp_path, name="x")


def test_a_rows_product_does_not_depend_on_its_company():
    from sona_stream_adapters.head.linear import has_onednn, linear
    from sona_stream_adapters.local.linear import pack

    weight, x = torch.randn(300, 48), torch.randn(2, 16, 48)
    expected = torch.nn.functional.linear(x, weight, torch.ones(300))
    torch.testing.assert_close(linear(x, pack(weight), torch.ones(300)), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear(x, weight, torch.ones(300)), expected, rtol=1e-5, atol=1e-5)
    if has_onednn():
        alone = [linear(x[0, :n], pack(weight))[0] for n in range(1, 17)]
        assert all(torch.equal(row, alone[0]) for row in alone)


def test_without_onednn_the_model_still_answers(tiny_folder, monkeypatch):
    for module in ("sona_stream_adapters.head.linear", "sona_stream_adapters.local.linear"):
        monkeypatch.setattr(f"{module}.has_onednn", lambda: False)
    model = load_model(tiny_folder, name="plain")
    assert not model.packed_head.is_mkldnn
    assert type(model.decoder.layers[0].mlp.up_proj) is torch.nn.Linear


def test_packing_is_taken_back_when_it_computes_something_else(tiny_folder, monkeypatch):
    monkeypatch.setattr("sona_stream_adapters.local.linear._PackedLinear.forward", lambda self, x: self.bias)
    model = load_model(tiny_folder, name="unpacked")
    assert type(model.decoder.layers[0].mlp.up_proj) is torch.nn.Linear
