"""Speculative decoding by n-grams (V1): drafts are rows, too."""

from __future__ import annotations

import numpy as np
import pytest
from engine import Engine, adapter_arrays, capture

PROMPTS = [[5 + i, 6 + i, 7 + i, 8 + i] * 6 for i in range(4)]
EXTRAS = [{"sona": "a", "sona_rid": "s0"}, None, {"sona": "a", "sona_rid": "s2"}, {"sona_rid": "s3"}]


@pytest.fixture(scope="module")
def speculating(model_folder, request):
    if request.config.getoption("--runner") == "v2":
        pytest.skip("vLLM's own kernel for speculation fails in Triton's interpreter")
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    made = Engine(model_folder, speculative_config=drafts)
    yield made
    made.close()


def test_the_same_tokens_as_without(engine, speculating, reference):
    arrays = adapter_arrays(engine.d, seed=12)
    answers = []
    for one in (engine, speculating):
        one.put("a", 1, arrays)
        answers.append(one.generate(PROMPTS, EXTRAS, tokens=24, logits=False))
    assert [a.ids for a in answers[0]] == [a.ids for a in answers[1]]
    stats = speculating.call("stats")
    assert stats["adapted_rows"] > 48, "no draft was ever offered"
    assert stats["mismatch"] == 0
    for i, weights in ((0, arrays), (2, arrays), (3, None)):
        found = capture(speculating, f"s{i}")
        ids = answers[1][i].ids
        assert found.token_ids.tolist() == ids
        assert np.abs(found.hidden - reference.states(PROMPTS[i], ids)).max() < 1e-4
        logits = reference.logits(PROMPTS[i], ids, weights)
        logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        assert np.abs(found.logprobs - logp[np.arange(24), ids]).max() < 2e-4


def test_memory_says_of_each_draft_what_it_says_without(engine, speculating, reference):
    """Gate and threshold lie so that its share tells how much of what was said it knew."""
    from sona_stream_adapters.vllm_plugin.codec import pack

    prompt, answer = PROMPTS[0], [100, 101, 102, 103] * 6
    states = reference.states(prompt, answer).astype(np.float32)
    blob = pack({"hidden": states, "token_ids": np.array(answer, np.int32)})
    found, before = [], speculating.call("stats")
    for one in (engine, speculating):
        one.call("put_episode", "e", blob)
        extra = {"sona_episodes": ["e"], "sona_gates": [0.3], "sona_rid": "memory"}
        (made,) = one.generate([prompt], [extra], tokens=len(answer), logits=False)
        assert made.ids == answer
        found.append(capture(one, "memory"))
        one.call("drop_episode", "e")
    stats = speculating.call("stats")
    assert stats["mixed_rows"] - before["mixed_rows"] > len(answer), "no draft was ever offered"
    assert stats["steps"] - before["steps"] < len(answer), "no draft was ever accepted"
    assert (stats["mismatch"], stats["disabled"]) == (0, "")
    assert [one.token_ids.tolist() for one in found] == [answer, answer]
    np.testing.assert_allclose(found[1].memory, found[0].memory, atol=2e-3)
    np.testing.assert_allclose(found[1].logprobs, found[0].logprobs, atol=5e-3)
    assert found[0].memory.min() > 0.75  # with nothing known of what was said it would be a half


def test_a_capture_ends_where_its_answer_does(speculating, reference):
    """The drafts are the answer, which stands in the prompt: it ends in the middle of a step's, again and again."""
    from sona_stream_adapters.vllm_plugin.codec import pack

    answer = list(range(100, 124))
    prompt = [*answer, 5, 6, 7, 8]
    blob = pack(
        {"hidden": reference.states(prompt, answer).astype(np.float32), "token_ids": np.array(answer, np.int32)}
    )
    speculating.call("put_episode", "e", blob)
    before, told = speculating.call("stats")["steps"], 0
    for length in range(6, 14):
        for how, asked in (("tokens", {"tokens": length}), ("end", {"stop_token_ids": [answer[length - 1]]})):
            extra = {"sona_episodes": ["e"], "sona_gates": [0.3], "sona_rid": f"{how}{length}"}
            (made,) = speculating.generate([prompt], [extra], logits=False, **{"tokens": 24, **asked})
            assert made.ids == answer[:length]
            found = capture(speculating, f"{how}{length}")
            assert found.token_ids.tolist() == made.ids
            assert len(found.hidden) == len(found.logprobs) == len(found.memory) == length
            told += length
    speculating.call("drop_episode", "e")
    assert speculating.call("stats")["steps"] - before < told, "no draft was ever accepted"
