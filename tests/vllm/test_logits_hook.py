"""The logits processor in a real engine, by the class that picks its runner; beside the plug-in's own hook."""

from __future__ import annotations

import time

import numpy as np
import pytest
from engine import Engine

from sona_stream_adapters.vllm_plugin import logits as module
from sona_stream_adapters.vllm_plugin.logit_bias.file import TenantBias, write_bias

PROMPTS = [[5 + 3 * i + j for j in range(7 + 4 * i)] for i in range(4)]
ACME, BETA, NOBODY = ({"sona_tenant": name} for name in ("acme", "beta", "nobody"))


def put(folder, tenant, entries):
    """Write, and wait until the engine has it."""
    before = module.bias_stats()["loaded"]
    ids = sorted(entries)
    values = np.array([entries[i] for i in ids], np.float32)
    write_bias(folder, TenantBias(tenant, np.array(ids, np.int32), values, 320))
    until(lambda: module.bias_stats()["loaded"] > before)


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def dense(entries):
    out = np.zeros(320, np.float32)
    for token, value in entries.items():
        out[token] = value
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bias")


@pytest.fixture(scope="module")
def biased(model_folder, folder, request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SONA_VLLM_BIAS_DIR", str(folder))
        patch.setenv("SONA_VLLM_BIAS_POLL_MS", "20")
        made = Engine(
            model_folder,
            enforce_eager=not request.config.getoption("--compiled"),
            max_num_batched_tokens=64,
            enable_chunked_prefill=True,
            logprobs_mode="processed_logits",
            logits_processors=["sona_stream_adapters.vllm_plugin.logits:TenantBias"],
        )
    yield made
    for serving in list(module._live):
        serving.folder.close()
    made.close()


ONE = {3: 2.5, 77: -4.0, 319: 1.25}
TWO = {77: 3.0, 100: 0.5}


def test_only_the_tenants_rows_are_biased_and_exactly(biased, folder, reference):
    plain = biased.generate(PROMPTS)
    put(folder, "acme", ONE)
    put(folder, "beta", TWO)
    answers = biased.generate(PROMPTS, [None, ACME, BETA, NOBODY])
    for i in (0, 3):
        assert answers[i].ids == plain[i].ids
        assert np.array_equal(answers[i].logits, plain[i].logits)
    for i, entries in ((1, ONE), (2, TWO)):
        first = plain[i].logits[0].astype(np.float32) + dense(entries)
        assert np.array_equal(answers[i].logits[0].astype(np.float32), first)
        expected = reference.logits(PROMPTS[i], answers[i].ids) + dense(entries)
        assert np.abs(answers[i].logits - expected).max() < 1e-4
    assert module.bias_stats()["biased_rows"] >= 16


def test_it_picked_the_class_of_the_runner(biased, request):
    runner = biased.worker.model_runner
    if request.config.getoption("--runner") == "v1":
        found = list(runner.input_batch.logitsprocs.all)
    else:
        found = runner.sampler.logits_processors
    wanted = {"v1": module.V1TenantBias, "v2": module.V2TenantBias}[request.config.getoption("--runner")]
    assert [type(one) for one in found].count(wanted) == 1


def test_rows_are_right_while_the_batch_changes(biased, folder, reference):
    """Answers of many lengths come and go, so that vLLM moves rows about."""
    from vllm import SamplingParams

    put(folder, "acme", {42: 8.0})
    put(folder, "beta", {43: 8.0})
    extras = [(None, ACME, BETA)[i % 3] for i in range(20)]
    prompts = [[7 + i, 9, 11 + i] for i in range(20)]
    params = [
        SamplingParams(temperature=0, max_tokens=1 + (5 * i) % 13, ignore_eos=True, logprobs=-1, extra_args=extra)
        for i, extra in enumerate(extras)
    ]
    outputs = biased.llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    for prompt, extra, out in zip(prompts, extras, outputs, strict=True):
        answer = biased._answer(out, True)
        own = {} if extra is None else {42: 8.0} if extra is ACME else {43: 8.0}
        assert np.abs(answer.logits - reference.logits(prompt, answer.ids) - dense(own)).max() < 1e-4


def test_a_prompt_read_in_chunks(biased, folder, reference):
    put(folder, "acme", ONE)
    prompt = [3 + (7 * i) % 300 for i in range(200)]
    (answer,) = biased.generate([prompt], [ACME])
    assert np.abs(answer.logits - reference.logits(prompt, answer.ids) - dense(ONE)).max() < 1e-4


def test_beside_the_hook(biased, folder, reference):
    """Both at once: h' = h + BAh by the plug-in, then the bias."""
    from engine import adapter_arrays

    arrays = adapter_arrays(biased.d, seed=3)
    biased.put("both", 1, arrays)
    put(folder, "acme", ONE)
    answers = biased.generate(PROMPTS, [ACME | {"sona": "both"}, {"sona": "both"}, ACME, None])
    for i, (weights, bias) in enumerate([(arrays, ONE), (arrays, {}), (None, ONE), (None, {})]):
        expected = reference.logits(PROMPTS[i], answers[i].ids, weights) + dense(bias)
        assert np.abs(answers[i].logits - expected).max() < 1e-4


def test_a_broken_file_changes_nothing_and_a_removed_one_ends(biased, folder):
    put(folder, "acme", ONE)
    before = biased.generate(PROMPTS[:2], [ACME, None])
    broken = module.bias_stats()["broken_files"]
    (folder / "acme.safetensors").write_bytes(b"nonsense")
    until(lambda: module.bias_stats()["broken_files"] > broken)
    again = biased.generate(PROMPTS[:2], [ACME, None])
    for a, b in zip(before, again, strict=True):
        assert np.array_equal(a.logits, b.logits)
    removed = module.bias_stats()["removed"]
    (folder / "acme.safetensors").unlink()
    until(lambda: module.bias_stats()["removed"] > removed)
    plain = biased.generate(PROMPTS[:2])
    gone = biased.generate(PROMPTS[:2], [ACME, None])
    assert np.array_equal(plain[0].logits, gone[0].logits)


def test_a_tenant_that_is_no_name_is_refused(biased):
    from vllm.exceptions import VLLMValidationError

    for tenant in (7, "", "x" * 257):
        with pytest.raises(VLLMValidationError, match="sona_tenant"):
            biased.generate(PROMPTS[:1], [{"sona_tenant": tenant}])


def test_an_error_in_it_ends_nothing(biased, folder, monkeypatch):
    put(folder, "acme", ONE)
    plain = biased.generate(PROMPTS)
    (serving,) = module._live

    def broken(*_):
        raise RuntimeError("forced")

    monkeypatch.setattr(serving.rows, "add", broken)
    answers = biased.generate(PROMPTS, [ACME] * 4)
    assert "forced" in module.bias_stats()["disabled"]
    for a, b in zip(plain, answers, strict=True):
        assert np.array_equal(a.logits, b.logits)
    serving.disabled = ""
