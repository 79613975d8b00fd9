"""Rows, steps and captures over a fake runner: no vLLM here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_vllm import RunnerV1, new_request, scheduled, weights
from hook_stand import D, Stand, V
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream_adapters.vllm_plugin.hook import Layout
from sona_stream_adapters.vllm_plugin.runners import problems_of


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_every_row_is_its_own_requests(data):
    """Requests come, go, are reordered and carry drafts; adapters are put and dropped in between."""
    stand = Stand(ring=512, native=data.draw(st.booleans()), max_delta=data.draw(st.sampled_from([1e3, 100.0])))
    served = {}
    bound, seen = {}, 0
    for step in range(data.draw(st.integers(1, 6))):
        for key in data.draw(st.sets(st.sampled_from("xyz"), max_size=2)):
            served[key] = (step + 1, weights(D, rank=1 + step % 3, seed=ord(key) + step, base_rank=step % 2))
            stand.table.put(key, *served[key])
        for key in data.draw(st.sets(st.sampled_from("xyz"), max_size=1)):
            if served.pop(key, None):
                stand.table.drop(key)
        finished = data.draw(st.sets(st.sampled_from(sorted(bound)), max_size=2)) if bound else set()
        new = []
        for _ in range(data.draw(st.integers(0 if len(bound) > len(finished) else 1, 3))):
            name, key = f"r{seen}", data.draw(st.sampled_from(["x", "y", "z", None]))
            seen += 1
            extra = {} if key is None else {"sona": key}
            new.append(new_request(name, sona_rid=name, **extra))
            bound[name] = key
        for name in finished:
            del bound[name]
        order = data.draw(st.permutations(sorted(bound)))
        drafts = {name: [1] * data.draw(st.integers(1, 2)) for name in order if data.draw(st.booleans())}
        fresh = {n.req_id for n in new}
        drafts = {name: tokens for name, tokens in drafts.items() if name not in fresh}
        tokens = {name: 3 if name in fresh else 1 + len(drafts.get(name, ())) for name in order}
        ids = torch.full((len(order), 3), -1, dtype=torch.int32)
        for i, name in enumerate(order):
            ids[i, : 1 + len(drafts.get(name, ()))] = step + 1
        stand.runner.step(scheduled(tokens, new=new, finished=finished, drafts=drafts), ids)
        owners = [name for name in order for _ in range(1 + len(drafts.get(name, ())))]
        factors = [served[bound[name]][1] if bound[name] in served else None for name in owners]
        assert np.allclose(stand.runner.drawn_from.double().numpy(), stand.expected(factors), atol=1e-3)
        plain = stand.runner.hidden @ stand.runner.model.W.T
        assert torch.equal(stand.runner.unadapted, plain)
        for i, own in enumerate(factors):
            assert own is not None or torch.equal(stand.runner.drawn_from[i], plain[i])
        logp = torch.log_softmax(stand.runner.drawn_from, 1)[:, step + 1]
        at = 0
        for name in order:
            count = 1 + len(drafts.get(name, ()))
            rows = stand.ring.read(stand.hook.requests.live[name].rows[-count:])
            assert torch.equal(rows.hidden, stand.runner.hidden[at : at + count])
            assert torch.allclose(stand.logprobs(name, rows, 1.0), logp[at : at + count], atol=1e-4)
            version = served[bound[name]][0] if bound[name] in served else 0
            assert rows.versions.tolist() == [version] * count
            at += count
    assert stand.counters.mismatch == 0
    assert stand.counters.disabled == ""


def test_chunks_of_a_prompt_and_a_preempted_request_leave_no_tokens():
    stand = Stand()
    stand.runner.step(scheduled({"r": 4}, new=[new_request("r", range(10), sona_rid="r")]))
    stand.runner.step(scheduled({"r": 4}, computed={"r": 4}))
    tracked = stand.hook.requests.live["r"]
    assert tracked.rows == []
    stand.runner.step(scheduled({"r": 2}, computed={"r": 8}))
    stand.runner.step(scheduled({"r": 1}, computed={"r": 10}, outputs={"r": 1}))
    assert len(tracked.rows) == 2
    stand.runner.step(scheduled({"r": 8}, computed={"r": 0}, outputs={"r": 2}, resumed=["r"]))
    assert len(tracked.rows) == 2
    stand.runner.step(scheduled({"r": 4}, computed={"r": 8}, outputs={"r": 2}))
    assert len(tracked.rows) == 3
    stand.runner.step(scheduled({}, finished=["r"]))
    assert stand.captures.waiting("r") is tracked


def test_several_answers_of_one_id_and_what_the_ring_has_overwritten():
    stand = Stand(ring=16)
    new = [new_request(f"{i}_r", sona_rid="r") for i in range(2)]
    stand.runner.step(scheduled({"0_r": 3, "1_r": 3}, new=new))
    stand.runner.step(scheduled({}, finished=["0_r", "1_r"]))
    assert stand.captures.waiting("r") is not None
    assert stand.captures.waiting("r#1") is not None
    stand.runner.step(scheduled({"b": 3}, new=[new_request("b", sona_rid="b")]))
    for i in range(20):
        stand.runner.step(scheduled({"b": 1}, computed={"b": 3 + i}, outputs={"b": 1 + i}))
    stand.runner.step(scheduled({}, finished=["b"]))
    assert stand.captures.waiting("r") is None
    assert stand.counters.lost_rows == 2
    assert stand.ring.lost(stand.captures.waiting("b").rows) == 5


@pytest.mark.parametrize("native", [True, False])
def test_the_norm_cap(native):
    stand = Stand(max_delta=0.5, native=native)
    own = weights(D, scale=9.0)
    stand.table.put("x", 1, own)
    stand.runner.step(scheduled({"r": 3}, new=[new_request("r", sona="x")]))
    seen = stand.runner.model.seen[0]
    moved = torch.linalg.vector_norm(seen - stand.runner.hidden) / torch.linalg.vector_norm(stand.runner.hidden)
    assert float(moved) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("native", [True, False])
def test_rows_cut_to_the_norm_cap_are_counted_and_marked(native):
    stand = Stand(max_delta=0.5, native=native)
    stand.table.put("large", 1, weights(D, scale=9.0))
    stand.table.put("small", 1, weights(D, scale=1e-3, seed=1))
    new = [
        new_request("a", sona="small", sona_rid="a"),
        new_request("b", sona="large", sona_rid="b"),
        new_request("c", sona_rid="c"),
        new_request("d", sona="large"),
    ]
    stand.runner.step(scheduled(dict.fromkeys("abcd", 3), new=new))
    stand.runner.step(scheduled({"c": 1, "a": 1}, finished=["b", "d"], computed={"c": 3, "a": 3}))
    assert stand.hook.capped_rows == 2
    live = stand.hook.requests.live
    rows = stand.ring.read([*live["a"].rows, *live["c"].rows])
    assert not rows.capped.any()
    assert stand.ring.read(stand.captures.waiting("b").rows).capped.tolist() == [True]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logprobs_taken_later_are_those_of_the_step(temperature):
    """The sampler writes to its logits, adapters change in between: neither changes what is told."""
    stand = Stand()
    stand.table.put("x", 1, weights(D, scale=0.5))
    new = [new_request(name, sona="x", sona_rid=name, temperature=temperature) for name in "ab"]
    drawn = []
    for step in range(8):
        tokens = scheduled(
            dict.fromkeys("ab", 1 if step else 3),
            new=() if step else new,
            computed=dict.fromkeys("ab", 2 + step),
            outputs=dict.fromkeys("ab", step),
        )
        stand.runner.step(tokens, torch.tensor([[step], [step + 9]], dtype=torch.int32))
        drawn.append(stand.runner.drawn_from)
        if step == 4:
            stand.table.put("x", 2, weights(D, scale=0.5, seed=7))
    stand.table.clear()
    for i, name in enumerate("ab"):
        rows = stand.ring.read(stand.hook.requests.live[name].rows)
        assert rows.versions.tolist() == [1] * 5 + [2] * 3
        found = stand.logprobs(name, rows, temperature)
        for step in range(8):
            logp = torch.log_softmax(drawn[step][i] / (temperature or 1.0), 0)[step + 9 * i]
            assert float(found[step]) == pytest.approx(float(logp), abs=1e-4)


def test_a_request_of_vllms_own_lora_is_scored_in_its_step():
    """Its logits are not those of the lm_head alone: no later call would say them again."""
    stand = Stand()
    new = [new_request("a", sona_rid="a", temperature=0.5), new_request("b", sona_rid="b", temperature=0.5)]
    new[1].lora_request = object()
    stand.runner.step(scheduled({"a": 3, "b": 3}, new=new), torch.tensor([[4], [6]], dtype=torch.int32))
    rows = stand.ring.read([stand.hook.requests.live[name].rows[0] for name in "ab"])
    assert rows.scored.tolist() == [False, True]
    expected = torch.log_softmax(stand.runner.drawn_from[1] / 0.5, 0)[6]
    assert float(rows.logprobs[1]) == pytest.approx(float(expected), abs=1e-5)


def test_a_new_model_is_reported_before_its_first_step():
    stand = Stand()
    stand.table.put("x", 1, weights(D))
    stand.runner.model = type(stand.runner.model)(stand.runner.model.W * 2)
    stand.runner.step(scheduled({"r": 3}, new=[new_request("r", sona="x")]))
    assert stand.changed == 1
    assert stand.counters.adapted_rows == 1


def test_what_cannot_be_served_is_named():
    class Strange:
        batch_sharder = object()
        model = None

        def execute_model(self, something_else):
            raise NotImplementedError

    text = " ".join(problems_of(Strange(), object()))
    for part in ("sample is missing", "does not begin with", "compute_logits is missing", "batch-sharded"):
        assert part in text
    runner = RunnerV1(torch.zeros(V, D))
    assert problems_of(runner, object()) == []


@pytest.mark.parametrize("native", [True, False])
def test_states_that_lie_in_a_buffer_are_kept_before_the_next_step_writes_to_it(native):
    stand = Stand(native=native)
    buffer = torch.zeros(8, D)

    new = [new_request("r", sona_rid="r")]
    for step in range(4):
        begins = {"new": new} if step == 0 else {"computed": {"r": 2 + step}, "outputs": {"r": step}}
        output = scheduled({"r": 1 if step else 3}, **begins)
        buffer[0] = float(step + 1)
        stand.hook.begin(output)
        stand.hook.armed = lambda: Layout(["r"])
        stand.hook.compute_logits(lambda hidden: hidden @ stand.runner.model.W.T, buffer[:1])
        stand.hook.sampled(torch.tensor([[step]], dtype=torch.int32))
    rows = stand.ring.read(stand.hook.requests.live["r"].rows)
    assert rows.hidden[:, 0].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert rows.token_ids.tolist() == [0, 1, 2, 3]


def test_who_left_nothing_does_not_keep_others_from_being_cleared():
    """A client went while its prompt was read; another's answer was read to the model and not fetched."""
    stand = Stand(ring=16)
    gone, taught = new_request("g", range(10), sona_rid="g"), new_request("t", sona_rid="t", sona_teach=1)
    stand.runner.step(scheduled({"g": 4, "t": 3}, new=[gone, taught]))
    stand.hook.read_prompts(torch.randn(7, D), {"g": 0, "t": 4}.get)
    new = [new_request("a", sona_rid="a"), new_request("b", sona_rid="b")]
    stand.runner.step(scheduled({"a": 3, "b": 3}, new=new, finished=["g", "t"]))
    assert stand.captures.waiting("g") is None
    for i in range(20):
        ended = ["a"] if i == 0 else []
        stand.runner.step(scheduled({"b": 1}, computed={"b": 3 + i}, outputs={"b": 1 + i}, finished=ended))
    assert stand.captures.waiting("a") is not None
    stand.runner.step(scheduled({}, finished=["b"]))
    assert stand.captures.waiting("a") is None
    assert stand.captures.waiting("b") is not None
    assert len(stand.captures.waiting("t").taught[0]) == 2


def test_what_is_released_while_it_runs_leaves_nothing():
    stand = Stand()
    new = [new_request("r", sona_rid="r"), new_request("t", sona_rid="t", sona_teach=1)]
    stand.runner.step(scheduled({"r": 3, "t": 3}, new=new))
    stand.hook.read_prompts(torch.randn(6, D), {"r": 0, "t": 3}.get)
    stand.hook.requests.release("t")
    for i in range(4):
        if i == 2:  # nothing else changes in the batch
            stand.hook.requests.release("r")
        ended = ["t"] if i == 0 else []
        stand.runner.step(scheduled({"r": 1}, computed={"r": 3 + i}, outputs={"r": 1 + i}, finished=ended))
        assert len(stand.hook.requests.live["r"].rows) == min(2 + i, 3)
    stand.runner.step(scheduled({}, finished=["r"]))
    assert stand.captures.waiting("r") is stand.captures.waiting("t") is None
    assert not stand.hook.requests.live


def test_who_is_answered_without_the_hook_is_known(monkeypatch):
    """Those in the step in which it fails, and those who come later; who had ended keeps its capture."""
    stand = Stand()
    stand.table.put("k", 1, weights(D))
    stand.runner.step(scheduled({"a": 3, "b": 3}, new=[new_request("a", sona_rid="A"), new_request("b", sona="k")]))
    monkeypatch.setattr(stand.hook.planner, "plan", lambda *args, **kwargs: 1 / 0)
    new = [new_request("c", sona="k", sona_rid="C"), new_request("d")]
    stand.runner.step(scheduled({"b": 1, "c": 3, "d": 3}, new=new, finished=["a"]))
    assert "ZeroDivisionError" in stand.counters.disabled
    stand.runner.step(scheduled({"e": 3}, new=[new_request("e", sona="k", sona_rid="E", sona_gates=3)]))
    stand.runner.step(scheduled({"f": 3}, new=[new_request("f", sona="k", sona_rid="F")], finished=["c", "e"]))
    assert list(stand.hook.unserved.newest()) == ["C", "F"]
    assert "failed while" in stand.hook.unserved.reason("C")
    assert "switched itself off before" in stand.hook.unserved.reason("F")
    assert stand.captures.waiting("A") is not None
    assert not stand.hook.requests.live
    monkeypatch.setattr(stand.hook, "pass_by", lambda scheduled: 1 / 0)
    stand.runner.step(scheduled({"g": 3}, new=[new_request("g", sona_rid="G")]))  # and the step goes on


def test_the_unserved_are_bounded():
    from sona_stream_adapters.vllm_plugin.unserved import Unserved

    unserved = Unserved()
    for i in range(5000):
        unserved.note(f"r{i}", "why")
    unserved.note("r4999", "another reason")
    assert len(unserved) == 4096
    assert unserved.reason("r4999") == "why"
    assert unserved.reason("r0") == ""
    assert len(unserved.newest()) == 256


def test_what_does_not_lie_as_the_kernel_reads_it_is_left_to_torch():
    stand = Stand()
    stand.table.put("x", 1, weights(D, scale=0.5))
    new = [new_request("a", sona="x", sona_rid="a"), new_request("b", sona_rid="b")]
    stand.hook.begin(scheduled({"a": 3, "b": 3}, new=new))
    stand.hook.armed = lambda: Layout(["a", "b"])
    hidden, seen = torch.randn(D, 2).T, []
    stand.hook.compute_logits(lambda states: seen.append(states) or states @ stand.runner.model.W.T, hidden)
    stand.hook.sampled(torch.tensor([[3], [4]], dtype=torch.int32))
    assert stand.hook.planner.native is None
    assert stand.counters.disabled == ""
    adapter = stand.table.find("x", None)
    expected = hidden[0] + hidden[0] @ adapter.A.T @ adapter.B
    assert torch.allclose(seen[0][0], expected, atol=1e-5)
    assert torch.equal(seen[0][1], hidden[1])
    rows = stand.ring.read([stand.hook.requests.live[name].rows[0] for name in "ab"])
    assert torch.equal(rows.hidden, hidden)
    assert rows.token_ids.tolist() == [3, 4]


def test_more_rows_than_the_ring_has_are_counted_and_served_all_the_same():
    stand = Stand(ring=2)
    stand.table.put("x", 1, weights(D, scale=0.5))
    names = "abc"
    new = [new_request(name, sona="x", sona_rid=name) for name in names]
    stand.runner.step(scheduled(dict.fromkeys(names, 3), new=new))
    assert (stand.counters.lost_rows, stand.counters.adapted_rows, stand.counters.disabled) == (3, 3, "")
    assert not torch.equal(stand.runner.model.seen[0], stand.runner.hidden)
    assert all(not stand.hook.requests.live[name].rows for name in names)


def test_logits_that_were_never_drawn_from_leave_no_row():
    stand = Stand()
    new = [new_request("r", sona_rid="r")]
    for step in range(3):
        begins = {"new": new} if step == 0 else {"computed": {"r": 2 + step}, "outputs": {"r": step}}
        stand.hook.begin(scheduled({"r": 1 if step else 3}, **begins))
        stand.hook.armed = lambda: Layout(["r"])
        stand.hook.compute_logits(lambda hidden: hidden @ stand.runner.model.W.T, torch.full((1, D), float(step)))
        if step != 1:
            stand.hook.sampled(torch.tensor([[step]], dtype=torch.int32))
    rows = stand.ring.read(stand.hook.requests.live["r"].rows)
    assert rows.token_ids.tolist() == [0, 2]
    assert rows.hidden[:, 0].tolist() == [0.0, 2.0]
