"""The plug-in in an engine with vLLM's own LoRA on: it is installed before the first step, and no later call of its
own sees what the last batch's requests had.
"""

from __future__ import annotations

import numpy as np
import pytest
from engine import Engine, Reference, adapter_arrays, capture

from sona_stream.lora import AdapterRecord, LoraWeights, LowRank

PROMPTS = [[5 + 3 * i + j for j in range(7 + 4 * i)] for i in range(4)]


@pytest.fixture(scope="module", params=[["lm_head"], None], ids=["lm_head", "every layer"])
def beside(model_folder, request):
    if request.config.getoption("--runner") == "v2":
        pytest.skip("vLLM's own LoRA kernels fail in Triton's interpreter")
    # A slot more than adapters: on the CPU a request without one reads the last slot.
    options = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2}
    made = Engine(model_folder, **options, **({"lora_target_modules": request.param} if request.param else {}))
    yield made
    assert made.call("stats")["disabled"] == ""
    made.close()


def test_the_head_is_described_before_any_step_and_adapters_serve(beside, model_folder):
    assert beside.info["head"] == "whole"
    reference, arrays = Reference(model_folder), adapter_arrays(beside.d, seed=1)
    beside.put("a", 1, arrays)
    extras = [{"sona": "a", "sona_rid": "a"}, {"sona_rid": "b"}, None, {"sona": "a"}]
    answers = beside.generate(PROMPTS, extras, temperature=0.7, seed=1)
    for i, weights in ((0, arrays), (1, None), (2, None), (3, arrays)):
        expected = reference.logits(PROMPTS[i], answers[i].ids, weights)
        assert np.abs(answers[i].logits - expected).max() < 1e-4
    for i, rid, weights in ((0, "a", arrays), (1, "b", None)):
        logits = reference.logits(PROMPTS[i], answers[i].ids, weights) / 0.7
        logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        assert np.abs(capture(beside, rid).logprobs - logp[np.arange(8), answers[i].ids]).max() < 2e-4


def test_a_request_of_both_is_told_what_it_was_drawn_from(beside, model_folder, tmp_path):
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    from sona_stream_adapters.peft.checkpoint import Checkpoint
    from sona_stream_adapters.peft.lora_folder import write_lora_folder

    stock, ours = adapter_arrays(beside.d, seed=2, scale=0.2), adapter_arrays(beside.d, seed=3)
    weights = LoraWeights(LowRank(stock["micro.lora_A"], stock["micro.lora_B"], 1.0))
    record = AdapterRecord(
        key="tiny/acme/*",
        version=1,
        parent=None,
        fingerprint=Checkpoint(model_folder).fingerprint(),
        weights=weights,
        reason="step",
    )
    write_lora_folder(record, model=str(model_folder), out=tmp_path / "out")
    beside.put("b", 1, ours)
    params = [
        SamplingParams(
            temperature=0.7, max_tokens=8, ignore_eos=True, detokenize=False, logprobs=-1, seed=i, extra_args=extra
        )
        for i, extra in enumerate([{"sona": "b", "sona_rid": "both"}, {"sona_rid": "alone"}])
    ]
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS[:2]]
    lora = [LoRARequest("acme", 1, str(tmp_path / "out")), None]
    outputs = beside.llm.generate(prompts, params, lora_request=lora, use_tqdm=False)
    answers = [beside._answer(one, True) for one in outputs]
    plain = Reference(model_folder).logits(PROMPTS[0], answers[0].ids)
    assert np.abs(answers[0].logits - plain).max() > 0.1
    for answer, rid in zip(answers, ("both", "alone"), strict=True):
        logits = answer.logits / 0.7
        logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        found = capture(beside, rid)
        assert found.token_ids.tolist() == answer.ids
        assert np.abs(found.logprobs - logp[np.arange(8), answer.ids]).max() < 2e-4
