"""What goes wrong, and that the engine goes on."""

from __future__ import annotations

import numpy as np
import pytest
from engine import adapter_arrays, capture

PROMPTS = [[5 + 3 * i + j for j in range(7 + 4 * i)] for i in range(4)]
EXTRAS = [None, {"sona": "a", "sona_rid": "x"}, None, None]


@pytest.mark.parametrize("where", ["planner.plan", "requests.follow", "_ring.reserve", "_ring.stage"])
def test_a_hook_that_raises_passes_everything_through(engine, monkeypatch, where):
    plain = engine.generate(PROMPTS)
    engine.put("a", 1, adapter_arrays(engine.d))
    owner, name = where.split(".")

    def broken(*args, **kwargs):
        raise RuntimeError("forced")

    with monkeypatch.context() as patch:
        patch.setattr(getattr(engine.service.hook, owner), name, broken)
        broken_answers = engine.generate(PROMPTS, EXTRAS)
    for i in (0, 2, 3):
        assert np.array_equal(plain[i].logits, broken_answers[i].logits)
    stats = engine.call("stats")
    assert "RuntimeError: forced" in stats["disabled"]
    after = engine.generate(PROMPTS, EXTRAS)
    assert all(np.array_equal(a.logits, b.logits) for a, b in zip(plain, after, strict=True))
    assert "forced" in engine.call("install")["disabled"]
    assert engine.call("install", True)["disabled"] == ""
    again = engine.generate(PROMPTS, EXTRAS)
    assert not np.array_equal(plain[1].logits, again[1].logits)


def test_rows_that_do_not_add_up_pass_through(engine, monkeypatch):
    from sona_stream_adapters.vllm_plugin.hook import Layout

    plain = engine.generate(PROMPTS)
    engine.put("a", 1, adapter_arrays(engine.d))
    wraps = engine.service.wraps
    with monkeypatch.context() as patch:
        if wraps.kind == "v2":
            from sona_stream_adapters.vllm_plugin import runners

            patch.setattr(runners, "_layout_v2", lambda batch: Layout(batch.req_ids, [2] * len(batch.req_ids)))
        else:
            patch.setattr(wraps, "_layout_v1", lambda scheduled: Layout(["a", "b"]))
        answers = engine.generate(PROMPTS, [{"sona": "a"}] * 4)
    assert all(np.array_equal(a.logits, b.logits) for a, b in zip(plain, answers, strict=True))
    counters = engine.service.counters
    assert counters.mismatch > 0
    assert not counters.disabled
    counters.mismatch = 0


def test_a_replaced_model_is_wrapped_again(engine):
    from torch import nn

    runner = engine.worker.model_runner
    engine.put("a", 1, adapter_arrays(engine.d))
    before = engine.generate(PROMPTS, EXTRAS)
    first, rewraps = runner.model, engine.call("stats")["rewraps"]

    class Other(nn.Module):
        """The same layers under another object, as after a reload."""

        def __init__(self, model):
            super().__init__()
            self.model, self.lm_head, self.logits_processor = model.model, model.lm_head, model.logits_processor

        def forward(self, *args, **kwargs):
            return first(*args, **kwargs)

        def compute_logits(self, hidden_states):
            return self.logits_processor(self.lm_head, hidden_states)

    runner.model = Other(first)
    try:
        after = engine.generate(PROMPTS, EXTRAS)
        assert all(np.array_equal(a.logits, b.logits) for a, b in zip(before, after, strict=True))
        assert engine.call("stats")["rewraps"] == rewraps + 1
        assert [row["key"] for row in engine.call("adapters")["adapters"]] == ["a"]
    finally:
        runner.model = first
    engine.generate(PROMPTS, EXTRAS)


def test_other_weights_take_what_was_learned_with_them(engine):
    runner, lm_head = engine.worker.model_runner, engine.worker.model_runner.model.lm_head
    engine.put("a", 1, adapter_arrays(engine.d))
    before = engine.call("install")["fingerprint"]
    lm_head.weight.data[:64].mul_(1.5)
    try:
        engine.service.wraps._stale = True
        engine.generate(PROMPTS, EXTRAS)
        assert engine.call("install")["fingerprint"] != before
        assert engine.call("adapters")["adapters"] == []
        refused = engine.call("put", "a", 1, _blob(engine, fingerprint=before), ok=False)
        assert "another model" in refused["error"]
    finally:
        lm_head.weight.data[:64].div_(1.5)
        engine.service.wraps._stale = True
        engine.generate(PROMPTS, EXTRAS)
    assert engine.call("install")["fingerprint"] == before
    assert runner.model.lm_head is lm_head


def _gradient_job(engine, handle, tokens):
    """A gradient that is computed in slices, and did not begin yet."""
    from sona_stream_adapters.vllm_plugin.codec import pack

    arrays = {**adapter_arrays(engine.d), "advantages_0": np.ones(tokens, np.float32)}
    return engine.call("gradient", [handle], pack(arrays, {"anchor": 0.1}), {"sliced": True})["job"]


@pytest.mark.parametrize("other", [True, False])
def test_a_reload_voids_what_was_computed_with_the_weights_before_it(engine, other):
    """Before any step, too. Under the same weights adapters and captures stay; under others everything goes."""
    weight = engine.worker.model_runner.model.lm_head.weight.data
    info = engine.call("install")
    engine.put("a", 1, adapter_arrays(engine.d))
    engine.generate(PROMPTS, EXTRAS)
    held = capture(engine, "x")
    job = _gradient_job(engine, held.handle, len(held))
    assert engine.call("advance", job)["done"] is True
    job = _gradient_job(engine, held.handle, len(held))
    if other:
        weight[:64].mul_(1.5)
    engine.service.wraps._stale = True
    try:
        gone = engine.call("advance", job, ok=False)
        assert gone["gone"] == [held.handle]
        assert "loaded again" in gone["error"]
        kept = engine.call("capture", "x")["state"]
        assert kept == ("unknown" if other else "done")
        assert engine.call("adapters")["adapters"] == [] or not other
        assert (engine.call("install")["instance"] != info["instance"]) == other
        if other:
            assert engine.call("stats")["captures"] == 0
            refused = engine.call("put", "a", 1, _blob(engine, fingerprint=info["fingerprint"]), ok=False)
            assert "another model" in refused["error"]
    finally:
        if other:
            weight[:64].div_(1.5)
            engine.service.wraps._stale = True
    assert engine.call("install")["fingerprint"] == info["fingerprint"]


def test_answers_without_the_hook_are_named(engine, monkeypatch):
    engine.put("a", 1, adapter_arrays(engine.d))
    with monkeypatch.context() as patch:
        patch.setattr(engine.service.hook.planner, "plan", lambda *args, **kwargs: 1 / 0)
        engine.generate(PROMPTS, [{"sona": "a", "sona_rid": "during"}, *[None] * 3])
    engine.generate(PROMPTS, [{"sona": "a", "sona_rid": "after"}, *[None] * 3])
    for rid, words in (("during", "failed while it was being answered"), ("after", "switched itself off before")):
        told = engine.call("capture", rid)
        assert (told["state"], told["unserved"]) == ("unknown", True)
        assert words in told["reason"]
        assert "ZeroDivisionError" in told["reason"]
    assert set(engine.call("install")["unserved"]) >= {"during", "after"}
    assert "captures nothing now" in engine.call("capture", "never")["reason"]
    assert engine.call("stats")["live_requests"] == 0
    assert engine.call("install", True)["disabled"] == ""
    engine.generate(PROMPTS, EXTRAS)
    capture(engine, "x")


def _blob(engine, arrays=None, **facts):
    from sona_stream_adapters.vllm_plugin.codec import pack

    return pack(adapter_arrays(engine.d) if arrays is None else arrays, facts)


def _changed(d, name, value):
    arrays = adapter_arrays(d)
    arrays[name] = value(arrays[name])
    return arrays


def _with_nan(array):
    array[0, 0] = np.nan
    return array


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("micro.lora_A", _with_nan, "finite"),
        ("micro.lora_B", lambda B: B * 1e30, "more than 1e"),
        ("micro.lora_A", lambda A: A[:, :-1], "expected (rank, 128)"),
        ("micro.lora_B", lambda B: B[:, :1], "expected (128, 2)"),
        ("micro.lora_A", lambda A: np.zeros((80, 128), np.float32), "expected (128, 80)"),
    ],
)
def test_adapters_are_checked_at_the_door(engine, name, value, message):
    refused = engine.call("put", "bad", 1, _blob(engine, _changed(engine.d, name, value)), ok=False)
    assert message in refused["error"]
    assert engine.call("adapters")["adapters"] == []


def test_more_nonsense_at_the_door(engine):
    big = adapter_arrays(engine.d, rank=65)
    assert "SONA_VLLM_MAX_RANK=64" in engine.call("put", "big", 1, _blob(engine, big), ok=False)["error"]
    assert "safetensors" in engine.call("put", "k", 1, b"\x80\x04pickle?", ok=False)["error"]
    assert "versions count from 1" in engine.call("put", "k", 0, _blob(engine), ok=False)["error"]
    assert "name" in engine.call("put", "", 1, _blob(engine), ok=False)["error"]
    assert "TypeError" in engine.call("put", "k", ok=False)["error"]
    strange = [{"sona": ["a"]}, {"sona_episodes": ["a"], "sona_gates": [1.0, 2.0]}, {"sona": 3}, {"sona_teach": -1}]
    before = engine.call("stats")["bad_bindings"]
    assert len(engine.generate(PROMPTS, strange)) == 4
    assert engine.call("stats")["bad_bindings"] == before + 4


def test_a_row_never_moves_by_more_than_the_cap(engine, reference):
    arrays = adapter_arrays(engine.d, scale=50.0)
    engine.put("a", 1, arrays)
    (answer,) = engine.generate([PROMPTS[0]], [{"sona": "a", "sona_rid": "capped"}])
    h = reference.states(PROMPTS[0], answer.ids)
    change = (h @ arrays["micro.lora_A"].T) @ arrays["micro.lora_B"].T
    change *= np.minimum(1, np.linalg.norm(h, axis=1) / np.linalg.norm(change, axis=1))[:, None]
    assert np.abs(answer.logits - (h + change) @ reference.W.T).max() < 2e-4
