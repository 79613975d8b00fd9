"""SmolLM2-135M-Instruct in float32 against transformers, measured by the error that the same run has without any
adapter: 30 layers of another attention kernel differ by more than the hook does.
"""

from __future__ import annotations

import numpy as np
import pytest
from engine import Engine, Reference, adapter_arrays, capture

pytestmark = pytest.mark.model
PROMPTS = [[504, 2365, 282, 4649, 314], [1, 4093, 198, 28120], list(range(1000, 1038)), [9906, 260, 1789]]
TOKENS = 4


@pytest.fixture(scope="module")
def folder():
    from sona_stream_adapters.local.weights import pull_model

    return pull_model("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def smollm2(folder, request):
    made = Engine(folder, enforce_eager=not request.config.getoption("--compiled"))
    assert made.info["head"] == "whole"
    yield made
    assert made.call("stats")["disabled"] == ""
    made.close()


@pytest.fixture(scope="module")
def smollm2_reference(folder):
    return Reference(folder)


def worst(answer, logits):
    return np.abs(answer.logits - logits).max()


def test_within_twice_the_error_without_an_adapter(smollm2, smollm2_reference):
    plain = smollm2.generate(PROMPTS, tokens=TOKENS)
    noise = max(
        worst(answer, smollm2_reference.logits(prompt, answer.ids))
        for prompt, answer in zip(PROMPTS, plain, strict=True)
    )
    d = smollm2.d
    zero = {name: np.zeros_like(a) if name.endswith("B") else a for name, a in adapter_arrays(d).items()}
    smollm2.put("zero", 1, zero)
    for a, b in zip(plain, smollm2.generate(PROMPTS, [{"sona": "zero"}] * 4, tokens=TOKENS), strict=True):
        assert np.array_equal(a.logits, b.logits)
    # As large as adapters come before the norm cap: two of them in a batch, two requests without.
    mine, yours = (adapter_arrays(d, seed=seed, base_rank=8, scale=0.02) for seed in (1, 2))
    smollm2.put("mine", 1, mine)
    smollm2.put("yours", 1, yours)
    extras = [{"sona": "mine", "sona_rid": "m"}, None, {"sona": "yours", "sona_rid": "y"}, None]
    bound = smollm2.generate(PROMPTS, extras, tokens=TOKENS)
    assert smollm2.call("stats")["capped_rows"] == 0
    for i in (1, 3):
        assert np.array_equal(plain[i].logits, bound[i].logits)
    for i, arrays, rid in ((0, mine, "m"), (2, yours, "y")):
        expected = smollm2_reference.logits(PROMPTS[i], bound[i].ids, arrays)
        effect = worst(bound[i], smollm2_reference.logits(PROMPTS[i], bound[i].ids))
        error = worst(bound[i], expected)
        found = capture(smollm2, rid)
        assert found.token_ids.tolist() == bound[i].ids
        logp = expected - np.logaddexp.reduce(expected, axis=1, keepdims=True)
        told = np.abs(found.logprobs - logp[np.arange(TOKENS), bound[i].ids]).max()
        print(f"SmolLM2: {error:.2g} with, {noise:.2g} without, effect {effect:.2g}, log-probabilities {told:.2g}")
        assert effect > 1
        assert error <= 2 * noise
        assert told <= 4 * noise
