"""Rows of requests that name episodes, over a fake runner: what they are mixed with, and for how long."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from fake_vllm import new_request, scheduled
from hook_stand import D, Stand, V

from sona_stream.lora import HiddenSpace
from sona_stream_adapters.vllm_plugin.hook import Layout
from sona_stream_adapters.vllm_plugin.runners import _layout_v2

TOKENS = [7, 8, 7, 9]
RNG = np.random.default_rng(0)
KEYS = (RNG.standard_normal(D) + 0.02 * RNG.standard_normal((4, D))).astype(np.float32)
"""so much alike that what was said decides between them"""
MEAN, SPREAD = np.full(D, 0.2, np.float32), np.full(D, 1.5, np.float32)
SPACE = HiddenSpace(MEAN, SPREAD, "v")


def remember(stand, key="e"):
    return stand.episodes.put(key, KEYS, np.array(TOKENS, np.int32), SPACE)


def fill(stand):
    """Another episode that is as large as all there may be."""
    tokens = stand.episodes.max_bytes // (2 * D + 8)
    return stand.episodes.put("large", np.ones((tokens, D), np.float32), np.ones(tokens, np.int32))


def mixed(stand, row, followed, gate=0.9, threshold=-1.0):
    """That a row of the last step was drawn from the mixture, so many tokens of each pair's past having been said;
    returns which part of token 7 is memory's.
    """
    h = ((stand.runner.hidden[row].numpy() - MEAN) / SPREAD).astype(float)
    k = ((KEYS - MEAN) / SPREAD).astype(float)
    cosine = (k @ h) / np.linalg.norm(k, axis=1) / np.linalg.norm(h)
    s = gate * (cosine + np.array(followed) / 20)
    w = np.exp(60 * s) / np.exp(60 * s).sum()
    share = 0.998 / (1 + np.exp(-25 * (s.max() - threshold)))
    model = torch.softmax((stand.runner.hidden[row] @ stand.runner.model.W.T).double(), 0).numpy()
    memory = np.zeros(V)
    np.add.at(memory, TOKENS, w)
    expected = (1 - share) * model + share * memory
    found = torch.softmax(stand.runner.drawn_from[row].double(), 0).numpy()
    np.testing.assert_allclose(found, expected, atol=5e-3)
    return share * memory[7] / expected[7]


def plain(stand, row):
    return torch.equal(stand.runner.drawn_from[row], stand.runner.unadapted[row])


class Answers:
    """A stand whose requests draw what they are told to, a step each. Memory says nearly all of it."""

    def __init__(self, *names):
        self.stand, self.made = Stand(threshold=-1.0), dict.fromkeys(names, 0)
        extra = {"sona_episodes": ["e"], "sona_gates": [0.9]}
        self.new = [new_request(name, sona_rid=name, **extra) for name in names]

    def step(self, drafts=None, **drawn):
        """`drawn`: name -> the tokens that come of this step; the others are not scheduled."""
        drafts, new, self.new = drafts or {}, self.new, ()
        fresh = {one.req_id for one in new}
        tokens = {name: 3 if name in fresh else 1 + len(drafts.get(name, ())) for name in drawn}
        at = {name: 2 + self.made[name] for name in drawn}
        ids = torch.full((len(drawn), 3), -1, dtype=torch.int32)
        for i, those in enumerate(drawn.values()):
            ids[i, : len(those)] = torch.tensor(those)
        self.stand.runner.step(scheduled(tokens, new=new, computed=at, outputs=dict(self.made), drafts=drafts), ids)
        for name, those in drawn.items():
            self.made[name] += len(those)


def test_episode_rows_and_their_share():
    stand = Stand(threshold=0.3)
    remember(stand)
    new = [
        new_request("a", sona_rid="a", sona_episodes=["e"], sona_gates=[0.9]),
        new_request("b", sona_rid="b", sona_episodes=["none"]),
    ]
    stand.runner.step(scheduled({"a": 3, "b": 3}, new=new), torch.tensor([[7], [7]], dtype=torch.int32))
    assert plain(stand, 1)
    part = mixed(stand, 0, [4, 0, 0, 0], threshold=0.3)
    rows = stand.ring.read([stand.hook.requests.live[name].rows[0] for name in "ab"])
    assert rows.memory[1] == 0
    assert float(rows.memory[0]) == pytest.approx(part, abs=5e-3)


def test_every_row_knows_what_would_have_been_said_before_it():
    """The drafts of speculative decoding count as said in the rows after them."""
    answers = Answers("a", "b")
    stand = answers.stand
    remember(stand)
    answers.step(a=[7], b=[5])
    mixed(stand, 0, [4, 0, 0, 0])
    answers.step(a=[8], b=[5])
    mixed(stand, 0, [0, 4, 0, 1])  # 7 was said
    mixed(stand, 1, [0, 0, 0, 0])
    answers.step(a=[7, 9], b=[5], drafts={"a": [7, 9]})
    mixed(stand, 0, [0, 0, 4, 0])  # 7 8
    mixed(stand, 1, [0, 1, 0, 4])  # 7 8 7
    mixed(stand, 2, [0, 0, 0, 0])  # 7 8 7 9
    mixed(stand, 3, [0, 0, 0, 0])
    answers.step(a=[8], b=[7], drafts={"a": [-1]})  # a place without a draft, which begins no answer
    mixed(stand, 1, [0, 0, 0, 0])
    answers.step(a=[3], b=[5])
    mixed(stand, 0, [0, 0, 1, 0])  # 9 8
    mixed(stand, 1, [0, 1, 0, 1])  # 5 5 5 7
    assert stand.counters.mismatch == 0
    assert stand.counters.disabled == ""


def test_the_second_runner_says_which_drafts_its_rows_were_given():
    """Three tokens of a prompt, then two requests with one and two drafts."""
    batch = types.SimpleNamespace(
        req_ids=["p", "a", "b"],
        num_draft_tokens=3,
        cu_num_logits_np=np.array([0, 1, 3, 6]),
        input_ids=torch.tensor([1, 2, 3, 40, 41, 50, 51, 52, 0, 0], dtype=torch.int32),
        logits_indices=torch.tensor([2, 3, 4, 5, 6, 7]),
    )
    layout = _layout_v2(batch)
    assert layout.counts == [1, 2, 3]
    assert layout.drafts_of(1, 1).tolist() == [41]
    assert layout.drafts_of(2, 2).tolist() == [51, 52]
    del batch.input_ids
    assert _layout_v2(batch).drafts_of is None


def test_tokens_that_were_drawn_while_the_episode_was_away_are_not_known():
    answers = Answers("a")
    stand = answers.stand
    remember(stand)
    answers.step(a=[7])
    stand.episodes.drop("e")
    answers.step(a=[8])
    assert plain(stand, 0)
    remember(stand)
    answers.step(a=[7])
    mixed(stand, 0, [0, 0, 0, 0])  # what was said before is past
    answers.step(a=[7])
    mixed(stand, 0, [0, 1, 0, 1])
    answers.step(a=[7])
    mixed(stand, 0, [0, 1, 0, 1])


def test_an_episode_that_comes_in_mid_answer_finds_no_beginning():
    answers = Answers("a")
    stand = answers.stand
    answers.step(a=[5])
    remember(stand)
    answers.step(a=[7])
    mixed(stand, 0, [0, 0, 0, 0])
    answers.step(a=[8])
    mixed(stand, 0, [0, 1, 0, 1])


def test_a_request_that_is_first_seen_in_mid_answer_has_no_beginning():
    """One that was preempted comes as new to the second runner, its answer so far being part of its prompt."""
    stand = Stand(threshold=-1.0)
    remember(stand)
    new = new_request("a", sona_episodes=["e"], sona_gates=[0.9])
    new.prefill_token_ids = [*new.prompt_token_ids, 7]
    stand.runner.step(scheduled({"a": 4}, new=[new]), torch.tensor([[8]], dtype=torch.int32))
    mixed(stand, 0, [0, 0, 0, 0])


def test_a_step_that_passed_by_leaves_what_was_said_unknown_and_one_that_drew_nothing_does_not():
    answers = Answers("a", "b")
    stand, hook = answers.stand, answers.stand.hook
    remember(stand)
    answers.step(a=[7], b=[7])
    answers.step(b=[8])
    answers.step(a=[8], b=[7])
    mixed(stand, 0, [0, 4, 0, 1])  # it waited for a step
    mixed(stand, 1, [0, 0, 4, 0])
    hook.begin(scheduled({"a": 1, "b": 1}, computed={"a": 4, "b": 5}, outputs={"a": 2, "b": 3}))
    hook.armed = lambda: Layout(["a", "b"])
    hook.compute_logits(lambda hidden: hidden @ stand.runner.model.W.T, torch.randn(3, D))  # whose is the third?
    hook.sampled(torch.tensor([[7], [9]]))
    assert stand.counters.mismatch == 1
    answers.made |= {"a": 3, "b": 4}
    answers.step(a=[7], b=[9])
    for row in (0, 1):
        mixed(stand, row, [0, 0, 0, 0])


def test_an_answer_goes_on_as_it_began_though_its_episode_had_to_make_room():
    answers = Answers("a")
    stand = answers.stand
    remember(stand)
    answers.step(a=[7])
    assert fill(stand) == ["e"]
    assert (len(stand.episodes), stand.episodes.nbytes) == (1, stand.episodes.max_bytes)
    assert stand.episodes.held_bytes >= len(TOKENS) * (2 * D + 8 + 4 * D)
    answers.new, answers.made["b"] = [new_request("b", sona_rid="b", sona_episodes=["e"])], 0
    answers.step(a=[8], b=[5])
    mixed(stand, 0, [0, 4, 0, 1])
    assert plain(stand, 1)  # who comes later goes without
    assert stand.episodes.drop("e")  # forgotten: nobody says it any more
    assert not stand.episodes.drop("e")
    answers.step(a=[7], b=[5])
    assert plain(stand, 0)


def test_what_an_answer_held_goes_with_it():
    answers = Answers("a")
    stand = answers.stand
    remember(stand)
    answers.step(a=[7])
    fill(stand)
    answers.step(a=[8])
    mixed(stand, 0, [0, 4, 0, 1])
    stand.runner.step(scheduled({}, finished=["a"]))
    assert stand.captures.waiting("a") is not None
    assert stand.episodes.held_bytes == 0
