"""What the engine says with the plug-in, against itself without and against transformers."""

from __future__ import annotations

import numpy as np
import pytest
from engine import adapter_arrays, capture

PROMPTS = [[5 + 3 * i + j for j in range(7 + 4 * i)] for i in range(4)]
TOLERANCE = 1e-4


def test_a_zero_adapter_changes_no_bit(engine):
    plain = engine.generate(PROMPTS)
    zero = {name: np.zeros_like(a) if name.endswith("B") else a for name, a in adapter_arrays(engine.d).items()}
    engine.put("zero", 1, zero)
    bound = engine.generate(PROMPTS, [{"sona": "zero"}] * 4)
    for a, b in zip(plain, bound, strict=True):
        assert a.ids == b.ids
        assert np.array_equal(a.logits, b.logits)


@pytest.mark.parametrize("base_rank", [0, 5])
def test_one_of_four_is_adapted_and_the_others_keep_their_bits(engine, reference, base_rank):
    plain = engine.generate(PROMPTS)
    arrays = adapter_arrays(engine.d, base_rank=base_rank)
    engine.put("one", 3, arrays, **{"base.scaling": 0.5})
    before = engine.call("stats")["adapted_rows"]
    bound = engine.generate(PROMPTS, [None, {"sona": "one"}, None, None])
    assert engine.call("stats")["adapted_rows"] - before == 8
    for i, (a, b) in enumerate(zip(plain, bound, strict=True)):
        assert np.array_equal(a.logits, b.logits) == (i != 1)
    expected = reference.logits(PROMPTS[1], bound[1].ids, arrays, {"base": 0.5})
    assert np.abs(bound[1].logits - expected).max() < TOLERANCE
    assert np.abs(plain[1].logits - expected).max() > 100 * TOLERANCE


def test_two_tenants_in_one_batch(engine, reference):
    mine, yours = adapter_arrays(engine.d, seed=1), adapter_arrays(engine.d, seed=2, rank=1, base_rank=4)
    engine.put("m/mine/*", 1, mine)
    engine.put("m/yours/*", 1, yours)
    answers = engine.generate(PROMPTS, [{"sona": "m/mine/*"}, {"sona": "m/yours/*"}, None, {"sona": "m/mine/*"}])
    for prompt, answer, arrays in zip(PROMPTS, answers, (mine, yours, None, mine), strict=True):
        assert np.abs(answer.logits - reference.logits(prompt, answer.ids, arrays)).max() < TOLERANCE


def test_a_prompt_read_in_chunks(engine, reference):
    prompt = [3 + (7 * i) % 300 for i in range(200)]
    arrays = adapter_arrays(engine.d, seed=3)
    engine.put("a", 1, arrays)
    (answer,) = engine.generate([prompt], [{"sona": "a", "sona_rid": "chunked"}])
    assert np.abs(answer.logits - reference.logits(prompt, answer.ids, arrays)).max() < TOLERANCE
    assert capture(engine, "chunked").token_ids.tolist() == answer.ids


def test_tenants_share_the_prefix_cache_and_a_swap_leaves_it_valid(engine, reference):
    prompt = [9 + (11 * i) % 280 for i in range(200)]
    first, second = adapter_arrays(engine.d, seed=4), adapter_arrays(engine.d, seed=5)
    engine.put("x", 1, first)
    engine.generate([prompt], [{"sona": "x"}])
    engine.put("y", 1, second)
    engine.put("x", 2, second)
    for extra, arrays in (({"sona": "y"}, second), ({"sona": "x"}, second), (None, None)):
        (answer,) = engine.generate([prompt], [extra])
        assert answer.cached > 100
        assert np.abs(answer.logits - reference.logits(prompt, answer.ids, arrays)).max() < TOLERANCE


def test_prompt_logprobs_are_never_adapted(engine, reference):
    engine.put("a", 1, adapter_arrays(engine.d, seed=6))
    plain = engine.generate([PROMPTS[2]], prompt_logprobs=1)
    bound = engine.generate([PROMPTS[2]], [{"sona": "a"}], prompt_logprobs=1)
    assert not np.array_equal(plain[0].logits, bound[0].logits)


def test_a_pinned_version_is_served_and_an_unknown_key_is_the_base_model(engine, reference):
    old, new = adapter_arrays(engine.d, seed=7), adapter_arrays(engine.d, seed=8)
    engine.put("a", 1, old)
    engine.put("a", 2, new)
    missing = engine.call("stats")["missing_rows"]
    extras = [{"sona": "a", "sona_version": 1}, {"sona": "a"}, {"sona": "nobody"}, {"sona": "a", "sona_version": 9}]
    answers = engine.generate(PROMPTS, extras)
    for prompt, answer, arrays in zip(PROMPTS, answers, (old, new, None, None), strict=True):
        assert np.abs(answer.logits - reference.logits(prompt, answer.ids, arrays)).max() < TOLERANCE
    assert engine.call("stats")["missing_rows"] - missing == 16


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_captures_are_what_was_drawn(engine, reference, temperature):
    arrays = adapter_arrays(engine.d, seed=9)
    engine.put("a", 4, arrays)
    extras = [{"sona": "a", "sona_rid": "r0"}, {"sona_rid": "r1"}, None, {"sona": "a", "sona_rid": "r3"}]
    answers = engine.generate(PROMPTS, extras, temperature=temperature, seed=1, logits=False)
    for i, weights in ((0, arrays), (1, None), (3, arrays)):
        found = capture(engine, f"r{i}")
        assert found.token_ids.tolist() == answers[i].ids
        assert found.prompt_ids.tolist() == PROMPTS[i]
        assert found.adapter_versions.tolist() == [4 if weights else 0] * 8
        assert found.fingerprint == engine.info["fingerprint"]
        assert np.abs(found.hidden - reference.states(PROMPTS[i], answers[i].ids)).max() < 1e-4
        logits = reference.logits(PROMPTS[i], answers[i].ids, weights) / (temperature or 1.0)
        logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        assert np.abs(found.logprobs - logp[np.arange(8), answers[i].ids]).max() < 2e-4
    assert engine.call("capture", "r2", False)["state"] == "unknown"


def test_log_probabilities_are_taken_a_few_a_call(engine, monkeypatch):
    """Decoding waits for no long answer whose capture is asked for."""
    import dataclasses

    extra = [{"sona_rid": "long"}]
    (answer,) = engine.generate([PROMPTS[0]], extra, tokens=12, logits=False)
    engine.tell_ends()
    few = dataclasses.replace(engine.service.settings, gradient_tokens=5)
    monkeypatch.setattr(engine.service, "settings", few)
    assert [engine.call("capture", "long", False)["state"] for _ in range(3)] == ["running", "running", "done"]
    sliced = capture(engine, "long")
    monkeypatch.undo()
    (again,) = engine.generate([PROMPTS[0]], [{"sona_rid": "again"}], tokens=12, logits=False)
    assert again.ids == answer.ids == sliced.token_ids.tolist()
    assert np.allclose(sliced.logprobs, capture(engine, "again").logprobs, atol=1e-4)


def test_tokens_of_rows_cut_to_the_norm_cap_give_no_gradient(engine):
    from sona_stream.lora import LoraWeights, LowRank, TokenSignal
    from sona_stream_adapters.vllm_plugin.codec import pack, unpack
    from sona_stream_adapters.vllm_plugin.codec_computed import gradient_from, signal_parts

    large = adapter_arrays(engine.d, seed=20, scale=30.0)
    engine.put("large", 1, large)
    before = engine.call("stats")["capped_rows"]
    taught = {"sona": "large", "sona_rid": "taught", "sona_teach": 4}
    engine.generate([PROMPTS[0]], [{"sona": "large", "sona_rid": "cut"}], logits=False)
    engine.generate([PROMPTS[0]], [taught], tokens=1, prompt_logprobs=0, logits=False)
    cut = engine.call("stats")["capped_rows"] - before
    assert cut >= 8
    weights = LoraWeights(LowRank(large["micro.lora_A"], large["micro.lora_B"], 1.0))
    for rid in ("cut", "taught"):
        one = capture(engine, rid)
        capped = unpack(engine.call("capture", rid, False)["blob"])[0]["capped"]
        assert capped.any()
        signal = TokenSignal(weights=weights, advantages=[capped.astype(np.float32)])
        answer = engine.call("gradient", [one.handle], pack(*signal_parts(signal)), {})
        found = gradient_from(*unpack(answer["blob"]))
        assert not found.micro_A.any()
        assert not found.micro_B.any()


def test_a_given_answer_is_captured_from_one_prefill(engine, reference):
    arrays = adapter_arrays(engine.d, seed=10)
    engine.put("a", 2, arrays)
    room = 512 - len(PROMPTS[1])  # to the context's end: the engine takes no prompt that leaves it none
    for name, size in (("short", 9), ("long", 150), ("full", room)):
        prompt, answer = PROMPTS[1], [20 + (13 * i) % 250 for i in range(size)]
        for key, weights in (("a", arrays), ("nobody", None)):
            extra = {"sona": key, "sona_rid": f"{name}{key}", "sona_teach": len(prompt)}
            given = prompt + answer
            if size == room:
                extra["sona_last"] = given.pop()
            engine.generate([given], [extra], tokens=1, prompt_logprobs=0, temperature=0.5, logits=False)
            found = capture(engine, f"{name}{key}")
            assert found.token_ids.tolist() == answer
            assert found.prompt_ids.tolist() == prompt
            assert np.abs(found.hidden - reference.states(prompt, answer)).max() < 1e-4
            logits = reference.logits(prompt, answer, weights) / 0.5
            logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
            assert np.abs(found.logprobs - logp[np.arange(size), answer]).max() < 4e-4


def test_gradients_equal_autograd(engine, reference):
    import torch

    from sona_stream.lora import LoraWeights, LowRank, TokenSignal
    from sona_stream_adapters.vllm_plugin.codec import pack, unpack
    from sona_stream_adapters.vllm_plugin.codec_computed import gradient_from, signal_parts

    arrays = adapter_arrays(engine.d, seed=11)
    engine.put("a", 1, arrays)
    extras = [{"sona": "a", "sona_rid": f"g{i}"} for i in range(4)]
    engine.generate(PROMPTS, extras, temperature=0.8, seed=2, logits=False)
    captures = [capture(engine, f"g{i}") for i in range(4)]
    advantages = [np.linspace(-1, 1, 8, dtype=np.float32) * (i + 1) for i in range(4)]
    weights = LoraWeights(LowRank(arrays["micro.lora_A"], arrays["micro.lora_B"], 1.5))
    signal = TokenSignal(weights=weights, advantages=advantages, anchor=0.3)
    handles = [c.handle for c in captures]
    for options in ({}, {"sliced": True}):
        answer = engine.call("gradient", handles, pack(*signal_parts(signal)), options)
        while "blob" not in answer:
            answer = engine.call("advance", answer.get("job", "job-1"))
        found = gradient_from(*unpack(answer["blob"]))

    A, B = (torch.tensor(arrays[f"micro.lora_{x}"], dtype=torch.float64, requires_grad=True) for x in "AB")
    W, loss = torch.tensor(reference.W), torch.zeros((), dtype=torch.float64)
    for c, a in zip(captures, advantages, strict=True):
        h = torch.tensor(c.hidden, dtype=torch.float64)
        base = torch.log_softmax(h @ W.T / 0.8, 1)
        logp = torch.log_softmax((h + 1.5 * (h @ A.T) @ B.T) @ W.T / 0.8, 1)
        label = logp[torch.arange(8), torch.tensor(c.token_ids, dtype=torch.int64)]
        loss = loss - (torch.tensor(a) * label).sum() + 0.3 * (logp.exp() * (logp - base)).sum()
    loss.backward()
    for ours, theirs in ((found.micro_A, A.grad), (found.micro_B, B.grad)):
        assert np.linalg.norm(ours - theirs.numpy()) <= 1e-4 * np.linalg.norm(theirs.numpy())
    assert found.loss == pytest.approx(float(loss), rel=1e-4)


def test_captures_come_back_and_handles_that_are_gone_are_named(engine):
    from sona_stream_adapters.vllm_plugin.codec import pack, unpack
    from sona_stream_adapters.vllm_plugin.codec_computed import space_from

    engine.generate([PROMPTS[0]], [{"sona_rid": "late"}], logits=False)
    handle = capture(engine, "late").handle
    blob = engine.call("capture", "late", True)["blob"]
    engine.call("release", "late")
    refused = engine.call("hidden_space", [handle, "x"], ok=False)
    assert refused["gone"] == [handle, "x"]
    assert "SONA_VLLM_CAPTURE_MB" in refused["error"]
    kept = engine.call("keep", blob)["handle"]
    found = space_from(*unpack(engine.call("hidden_space", [kept], "v")["blob"]))
    hidden = unpack(blob)[0]["hidden"]
    assert np.allclose(found.mean, hidden.mean(0), atol=1e-5)
    assert np.allclose(found.spread, hidden.std(0), atol=1e-5)
    assert found.version == "v"
    arrays, facts = unpack(blob)
    refused = engine.call("keep", pack(arrays, {**facts, "fingerprint": "sha256:other"}), ok=False)
    assert "another model" in refused["error"]


def test_episodes_change_only_who_names_them(engine, reference):
    from sona_stream_adapters.vllm_plugin.codec import pack

    plain = engine.generate(PROMPTS)
    answer = [100, 101, 102, 103, 104, 105, 106, 107]
    states = reference.states(PROMPTS[1], answer).astype(np.float32)
    engine.call("put_episode", "e", pack({"hidden": states, "token_ids": np.array(answer, np.int32)}))
    extra = {"sona_episodes": ["e", "gone"], "sona_gates": [1.0, 1.0], "sona_rid": "memory"}
    mixed = engine.generate(PROMPTS, [None, extra, None, {"sona_episodes": ["gone"]}])
    for i in (0, 2, 3):
        assert np.array_equal(plain[i].logits, mixed[i].logits)
    assert mixed[1].ids == answer
    for own, changed in zip(plain[1].logits[:1], mixed[1].logits[:1], strict=True):
        assert set(np.flatnonzero(own != changed)) <= set(answer)
    engine.call("drop_episode", "e")
    again = engine.generate(PROMPTS, [None, extra, None, None])
    assert np.array_equal(again[1].logits, plain[1].logits)
