"""The exported folder against the real `peft` library and against the adapter's own formula."""

from __future__ import annotations

import errno
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from learned_adapter import KEY, PROMPT, oracle, random_weights
from safetensors.torch import load_file, save_file

from sona_stream.errors import HostError, InvalidRequest, ModelUnavailable
from sona_stream.lora import AdapterRecord
from sona_stream_adapters.local.model import load_model
from sona_stream_adapters.peft.checkpoint import Checkpoint
from sona_stream_adapters.peft.lora_folder import lora_factors, write_lora_folder
from sona_stream_adapters.peft.source import fingerprint_in_vllm

# peft asks transformers by a name that is going away; and it warns of merging into tied weights.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*:UserWarning"),
]
both = pytest.mark.parametrize("folder", ["untied", "tied"], indirect=True)


def plain_model(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def through_peft(plain, out):
    """(logits of PROMPT (T, V), the model), by transformers and peft alone; ``plain`` becomes a part of it."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(plain, out).eval()
    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0], model


@both
def test_peft_computes_what_the_adapter_computes(folder, model, make_record, tmp_path):
    record = make_record()
    said = write_lora_folder(record, model=str(folder), out=tmp_path / "out")
    logits, served = through_peft(plain_model(folder), tmp_path / "out")
    wanted = oracle(model, record.weights, PROMPT)
    base = model(torch.tensor([PROMPT])).logits[0]
    assert (wanted - base).abs().max() > 1  # the adapter does something
    assert (logits - wanted).abs().max() < 1e-4
    embedding = served.get_input_embeddings().weight
    assert torch.equal(embedding, model.get_input_embeddings().weight)
    assert any("memory" in line for line in said)


def test_the_files_are_the_standard_ones(folder, make_record, tmp_path):
    from peft import PeftConfig

    write_lora_folder(make_record(), model=str(folder), out=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = PeftConfig.from_pretrained(str(tmp_path / "out"))
    assert (config.r, config.lora_alpha, config.bias, set(config.target_modules)) == (8, 8, "none", {"lm_head"})
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
    assert shapes == {
        "base_model.model.lm_head.lora_A.weight": ((8, 48), torch.float32),
        "base_model.model.lm_head.lora_B.weight": ((320, 8), torch.float32),
    }
    assert not tensors["base_model.model.lm_head.lora_A.weight"][6:].any()
    assert not tensors["base_model.model.lm_head.lora_B.weight"][:, 6:].any()


@both
def test_the_card_says_where_it_came_from(folder, make_record, tmp_path):
    record = make_record()
    write_lora_folder(record, model=str(folder), out=tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for word in (KEY, record.fingerprint, str(folder), "memory of episodes", "--max-lora-rank 8", "PeftModel"):
        assert word in card
    assert ("merge_and_unload" in card) == Checkpoint(folder).is_tied


@pytest.mark.parametrize(
    ("rank", "base", "padded"), [(1, 0, 8), (2, 6, 8), (1, 8, 16), (2, 16, 32), (2, 32, 64), (2, 64, 128)]
)
def test_ranks_are_those_that_servers_take(folder, make_record, tmp_path, rank, base, padded):
    write_lora_folder(make_record(rank, base), model=str(folder), out=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (padded, padded)


def test_a_rank_no_server_takes_is_refused(folder, make_record, tmp_path):
    with pytest.raises(HostError, match="rank 130; at most 128"):
        write_lora_folder(make_record(2, 128), model=str(folder), out=tmp_path / "out")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rank=st.integers(1, 4), base=st.integers(0, 12), seed=st.integers(0, 99), scale=st.floats(1e-3, 1e2))
def test_the_factors_multiply_to_w_times_the_adapter(folder, model, rank, base, seed, scale):
    weights = random_weights(48, rank, base, seed, scale)
    lora_A, lora_B = lora_factors(weights, Checkpoint(folder), 16)
    W = model.get_output_embeddings().weight.detach().double().numpy()
    wanted = W @ weights.delta(np.eye(48, dtype=np.float32)).T.astype(np.float64)
    got = lora_B.double().numpy() @ lora_A.double().numpy()
    assert np.abs(got - wanted).max() <= 2e-6 * max(1.0, np.abs(wanted).max())


@both
def test_sharded_weights_are_read(folder, model, make_record, tmp_path):
    model.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    for path in folder.glob("*token*"):
        shutil.copy(path, tmp_path / "sharded")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    write_lora_folder(make_record(), model=str(folder), out=tmp_path / "one")
    write_lora_folder(make_record(), model=str(tmp_path / "sharded"), out=tmp_path / "two")
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


@both
def test_the_fingerprint_is_the_local_backends(folder):
    assert Checkpoint(folder).fingerprint() == load_model(folder, name="tiny").fingerprint


def test_another_model_is_refused_and_both_are_named(folder, make_record, tmp_path):
    record = make_record(fingerprint="sha256:0123")
    with pytest.raises(HostError) as caught:
        write_lora_folder(record, model=str(folder), out=tmp_path / "out")
    assert "sha256:0123" in str(caught.value)
    assert Checkpoint(folder).fingerprint() in str(caught.value)
    with pytest.raises(HostError, match=r"64 numbers.*48"):
        write_lora_folder(make_record(dim=64), model=str(folder), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@both
def test_one_changed_weight_is_another_model(folder, make_record, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] += 1e-3
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HostError, match="learned on the model"):
        write_lora_folder(make_record(), model=str(other), out=tmp_path / "out")


def test_a_folder_in_use_is_left_alone(folder, make_record, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    for name, words in (("full", "not empty"), ("file", "not a folder")):
        with pytest.raises(InvalidRequest, match=words) as caught:
            write_lora_folder(make_record(), model=str(folder), out=tmp_path / name)
        assert caught.value.param == "out"
    (tmp_path / "empty").mkdir()
    write_lora_folder(make_record(), model=str(folder), out=tmp_path / "empty")
    assert (tmp_path / "empty" / "adapter_config.json").is_file()


def test_a_full_disk_leaves_nothing(folder, make_record, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InvalidRequest, match=r"is full: 0\.0 MB are needed, 0\.0 MB are free"):
        write_lora_folder(make_record(), model=str(folder), out=tmp_path / "out")
    monkeypatch.undo()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sona_stream_adapters.peft.lora_folder.save_file", full)
    with pytest.raises(InvalidRequest, match="the disk is full"):
        write_lora_folder(make_record(), model=str(folder), out=tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_models_that_cannot_be_used_say_why(folder, make_record, tmp_path):
    with pytest.raises(ModelUnavailable, match="no model at"):
        write_lora_folder(make_record(), model=str(tmp_path / "nothing"), out=tmp_path / "out")
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"has no model\.safetensors"):
        write_lora_folder(make_record(), model=str(bare), out=tmp_path / "out")
    (bare / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        write_lora_folder(make_record(), model=str(bare), out=tmp_path / "out")


@both
def test_a_quantised_head_is_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    name = "model.embed_tokens.weight" if Checkpoint(folder).is_tied else "lm_head.weight"
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match="is quantised"):
        lora_factors(random_weights(48, 1, 0), Checkpoint(other), 8)


def test_an_adapter_with_numbers_that_are_not_finite_is_refused(folder, make_record, tmp_path):
    record = make_record()
    record.weights.micro.lora_B[0, 0] = np.nan
    with pytest.raises(HostError, match="not finite"):
        write_lora_folder(record, model=str(folder), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.model
def test_smollm2_through_peft(tmp_path):
    from sona_stream_adapters.local.weights import pull_model

    folder = pull_model("smollm2-135m-instruct")
    weights = random_weights(576, 2, 8, scale=0.03)
    fingerprint = Checkpoint(folder).fingerprint()
    record = AdapterRecord(key="smol/acme/*", version=1, parent=None, fingerprint=fingerprint, weights=weights)
    write_lora_folder(record, model="smollm2-135m-instruct", out=tmp_path / "out")
    plain = plain_model(folder)
    wanted = oracle(plain, record.weights, PROMPT)
    with torch.no_grad():
        assert (plain(torch.tensor([PROMPT])).logits[0] - wanted).abs().max() > 1
    logits, _ = through_peft(plain, tmp_path / "out")
    assert (logits - wanted).abs().max() < 1e-4


@both
def test_an_adapter_that_was_learned_inside_vllm(folder, make_record, tmp_path):
    record = make_record(fingerprint=fingerprint_in_vllm(Checkpoint(folder)))
    assert record.fingerprint != Checkpoint(folder).fingerprint()
    write_lora_folder(record, model=str(folder), out=tmp_path / "out")
    assert record.fingerprint in (tmp_path / "out" / "README.md").read_text()
