"""What a request asks of the plug-in: what cannot be used is counted and left out, and nobody else is touched."""

from __future__ import annotations

import json

import pytest
from fake_vllm import new_request, scheduled
from hook_stand import Stand

from sona_stream_adapters.vllm_plugin.counters import Counters
from sona_stream_adapters.vllm_plugin.requests import binding_from

LONG = "1" + "0" * 400
NO_NUMBERS = ("1e999", "-1e999", "NaN", LONG)


@pytest.mark.parametrize("number", NO_NUMBERS)
@pytest.mark.parametrize(
    "asked",
    [
        '{"sona": "k", "sona_version": %s}',
        '{"sona_teach": %s}',
        '{"sona_episodes": ["e"], "sona_gates": [%s]}',
        '{"sona_episodes": ["e"], "sona_shares": [%s]}',
    ],
)
def test_numbers_without_an_end_are_left_out_and_counted(asked, number):
    counters = Counters()
    assert binding_from(json.loads(asked % number), counters) is None
    assert counters.bad_bindings == 1


@pytest.mark.parametrize("number", NO_NUMBERS)
def test_they_switch_the_hook_off_for_nobody(number):
    stand = Stand()
    bad = new_request("bad", sona="k", sona_rid="bad", sona_version=json.loads(number))
    stand.runner.step(scheduled({"bad": 3, "good": 3}, new=[bad, new_request("good", sona_rid="good")]))
    assert (stand.counters.disabled, stand.counters.bad_bindings) == ("", 1)
    assert list(stand.hook.requests.live) == ["good"]


def test_whole_numbers_and_weights_are_taken_as_they_are():
    extra = {"sona": "k", "sona_version": 3.0, "sona_episodes": ["a", "b"], "sona_gates": [1, 0.25]}
    binding = binding_from(extra)
    assert (binding.version, binding.gates, binding.shares) == (3, (1.0, 0.25), (1.0, 1.0))
