"""What the steps after an answer's end drew is none of its capture, by vLLM's own rules."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from fake_vllm import new_request, scheduled
from hook_stand import Stand

from sona_stream_adapters.vllm_plugin.calls import _from_ring
from sona_stream_adapters.vllm_plugin.ending import Ending

EOS, STOP = 2, 3


def ids(*row):
    return torch.tensor([row], dtype=torch.int32)


def captured(stand, name="r"):
    """Token ids, states and all of a request that ended."""
    stand.runner.step(scheduled({}, finished=[name]))
    kept = _from_ring(name, stand.captures.waiting(name), SimpleNamespace(ring=stand.ring)).kept
    rows = len(kept)
    assert all(len(one) == rows for one in (kept.hidden, kept.logprobs, kept.versions, kept.memory, kept.capped))
    return kept.token_ids.tolist()


@pytest.mark.parametrize("native", [True, False])
def test_a_step_that_was_scheduled_before_the_end_token_was_seen(native):
    """vLLM's asynchronous scheduling."""
    stand = Stand(native=native)
    ends = {"eos_token_id": EOS, "stop_token_ids": [STOP], "max_tokens": 9, "min_tokens": 0}
    stand.runner.step(scheduled({"r": 3}, new=[new_request("r", ends=ends, sona_rid="r")]), ids(5))
    for i, token in enumerate((EOS, 33)):
        stand.runner.step(scheduled({"r": 1}, computed={"r": 3 + i}, outputs={"r": 1 + i}), ids(token))
    assert captured(stand) == [5, EOS]


@pytest.mark.parametrize(
    ("ends", "answer"),
    [
        ({"eos_token_id": EOS}, [5, EOS]),
        ({"eos_token_id": None, "stop_token_ids": [STOP]}, [5, EOS, STOP]),
        ({"eos_token_id": None, "stop_token_ids": [], "max_tokens": 2}, [5, EOS]),
        ({"eos_token_id": EOS, "stop_token_ids": [STOP], "min_tokens": 3}, [5, EOS, STOP]),
        ({"eos_token_id": None, "stop_token_ids": None, "max_tokens": None}, [5, EOS, STOP, 7]),
        ({}, [5, EOS, STOP, 7]),
    ],
)
def test_drafts_that_were_accepted_after_the_end(ends, answer):
    stand = Stand()
    stand.runner.step(scheduled({"r": 3}, new=[new_request("r", ends=ends, sona_rid="r")]), ids(5, -1, -1))
    step = scheduled({"r": 3}, computed={"r": 3}, outputs={"r": 1}, drafts={"r": [EOS, STOP]})
    stand.runner.step(step, ids(EOS, STOP, 7))
    assert captured(stand) == answer


def test_an_answer_that_ends_where_its_rows_do_is_whole():
    ending = Ending(frozenset({EOS}), 0, 4)
    assert [ending.length(one) for one in ([], [5], [5, EOS], [5, 6, 7, 8], [EOS, EOS])] == [0, 1, 2, 4, 1]
