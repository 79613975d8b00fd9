"""`sona-stream export` on state folders, also while a store is open: what it writes, how it says what is wrong."""

from __future__ import annotations

import dataclasses
import json

import pytest
from click.testing import CliRunner
from learned_adapter import KEY, fill, judged_answers
from program import write_config
from safetensors.torch import load_file

from sona_stream.cli import main
from sona_stream.config.settings import SonaSettings
from sona_stream.store import SqliteStore
from sona_stream_adapters.vllm_plugin.logit_bias.file import Limits, read_bias


def run(*arguments, code=0):
    result = CliRunner().invoke(main, ["export", *map(str, arguments)])
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
async def state(make_record, tmp_path):
    """Versions 2 and 3 of one key, of which 2 is served; a finer key; a key rolled back to the base model."""
    records = [
        make_record(version=2, seed=2),
        make_record(version=3, seed=3),
        make_record(key="tiny/acme/CodeGen", version=1),
        make_record(key="tiny/beta/*", version=1),
    ]
    await fill(tmp_path / "state", records, {KEY: 2, "tiny/acme/CodeGen": 1, "tiny/beta/*": 0})
    return tmp_path / "state"


def lora_A(out):
    return load_file(out / "adapter_model.safetensors")["base_model.model.lm_head.lora_A.weight"].numpy()


def test_the_served_version_is_written(state, folder, make_record, tmp_path):
    said = run(KEY, "--out", tmp_path / "out", "--state-dir", state, "--model", folder)
    assert f"adapter {KEY}@2 as a PEFT LoRA of rank 8" in said
    assert "not in it: the memory" in said
    assert (lora_A(tmp_path / "out")[:2] == make_record(seed=2).weights.micro.lora_A).all()


@pytest.mark.parametrize("words", [[KEY, "--version", "3"], [f"{KEY}@3"], ["--tenant", "acme", "--version", "3"]])
def test_a_version_can_be_named(state, folder, make_record, tmp_path, words):
    run(*words, "--out", tmp_path / "out", "--state-dir", state, "--model", folder)
    assert (lora_A(tmp_path / "out")[:2] == make_record(seed=3).weights.micro.lora_A).all()


def test_the_configuration_says_where_the_model_is(state, folder, tmp_path):
    config = write_config(tmp_path / "c.yaml", folder)
    run("--tenant", "acme", "--out", tmp_path / "out", "--state-dir", state, "--config", config)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        folder
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nobody/acme/*"], "there is no adapter nobody/acme/*; there are: tiny/acme/*"),
        (["--tenant", "gamma"], "nothing was learned for tenant 'gamma'"),
        ([KEY, "--version", "9"], "has no version 9; kept are 2, 3"),
        ([f"{KEY}@3", "--version", "2"], "name two versions"),
        (["tiny/beta/*"], "no version is served"),
        ([KEY], "are is not known here"),
        ([KEY, "--model", "/nowhere"], "no model at '/nowhere'"),
    ],
)
def test_wrong_input_is_told_in_one_line(state, tmp_path, words, told):
    said = run(*words, "--out", tmp_path / "out", "--state-dir", state, code=1)
    assert told in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_key_and_tenant_exclude_each_other(state, tmp_path):
    for words in ([], [KEY, "--tenant", "acme"]):
        assert "either a KEY or a --tenant" in run(*words, "--out", tmp_path / "out", "--state-dir", state, code=2)


def test_no_state_and_nothing_learned(tmp_path, folder):
    there = ("--out", tmp_path / "out", "--model", folder, "--state-dir", tmp_path / "state")
    assert "there is no state in" in run(KEY, *there, code=1)


async def test_nothing_learned(tmp_path, folder):
    await fill(tmp_path / "state", [], {})
    there = ("--out", tmp_path / "out", "--model", folder, "--state-dir", tmp_path / "state")
    assert "no adapter has been learned yet" in run(KEY, *there, code=1)


def test_a_damaged_file_is_named(state, folder, tmp_path):
    for path in (state / "adapters").rglob("v2.*"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    said = run(KEY, "--out", tmp_path / "out", "--state-dir", state, "--model", folder, code=1)
    assert f"adapter {KEY}@2 is damaged" in said


async def test_beside_an_open_store(make_record, folder, tmp_path):
    """As while a server runs: the newest commit is seen, and the store goes on."""
    async with SqliteStore(SonaSettings(), directory=tmp_path / "state") as store:
        for version in (1, 2):
            await store.put_adapter(make_record(version=version, seed=version))
            await store.set_current(KEY, version, reason="step")
            run(KEY, "--out", tmp_path / f"out{version}", "--state-dir", tmp_path / "state", "--model", folder)
            wanted = make_record(seed=version).weights.micro.lora_A
            assert (lora_A(tmp_path / f"out{version}")[:2] == wanted).all()


async def test_logit_bias_is_written_for_the_tenant(model, make_record, folder, tmp_path):
    record = make_record(key="tiny/a%2Fb/*")  # tenant a/b
    answers = judged_answers(model, record.fingerprint)
    async with SqliteStore(SonaSettings(), directory=tmp_path / "state") as store:
        await store.put_adapter(record)
        await store.set_current(record.key, 3, reason="step")
        for one in [*answers, dataclasses.replace(answers[0], request_id="x", fingerprint="of another model")]:
            await store.put_capture(record.key, one, 1.0, feedback_id=one.request_id)
    words = ("--out", tmp_path / "bias", "--state-dir", tmp_path / "state", "--model", folder)
    for _ in range(2):  # a second one takes the first one's place
        said = run(record.key, "--format", "logit-bias", *words)
    assert "over 30 kept tokens" in said
    assert "not in it" in said
    (path,) = (tmp_path / "bias").iterdir()
    bias = read_bias(path, Limits(), vocab_size=320)
    assert (bias.tenant, bias.source) == ("a/b", f"{record.key}@3")


def test_logit_bias_needs_kept_answers(state, folder, tmp_path):
    words = ("--format", "logit-bias", "--out", tmp_path / "bias", "--state-dir", state, "--model", folder)
    assert "sona.storage: features keeps them" in run(KEY, *words, code=1)
