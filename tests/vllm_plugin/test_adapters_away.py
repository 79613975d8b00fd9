"""Requests whose adapter is not there when they are answered: the proxy, which believes that it served, is told."""

from __future__ import annotations

import pytest
from fake_vllm import new_request, scheduled, weights
from hook_stand import D, Stand


@pytest.mark.parametrize("version", [None, 1])
def test_whose_adapter_had_to_make_room_before_the_first_step_is_known(version):
    stand = Stand()
    named = {"sona": "mine"} if version is None else {"sona": "mine", "sona_version": version}
    stand.table.put("mine", 1, weights(D))
    stand.table._max_bytes = stand.table.nbytes
    stand.table.put("others", 1, weights(D))
    new = [new_request("a", sona_rid="A", **named), new_request("b", sona="others", sona_rid="B")]
    stand.runner.step(scheduled({"a": 2, "b": 3}, new=new))
    assert len(stand.hook.unserved) == 0  # it still reads its prompt
    stand.runner.step(scheduled({"a": 1, "b": 1}, computed={"a": 2, "b": 3}, outputs={"a": 0, "b": 1}))
    assert list(stand.hook.unserved.newest()) == ["A"]
    assert "SONA_VLLM_ADAPTER_MB" in stand.hook.unserved.reason("A")


@pytest.mark.parametrize("dropped", [None, 1])
def test_whose_adapter_was_dropped_is_not_complained_of(dropped):
    stand = Stand()
    stand.table.put("k", 1, weights(D))
    stand.runner.step(scheduled({"a": 3}, new=[new_request("a", sona="k", sona_rid="A")]))
    stand.table.drop("k", dropped)
    new = [new_request("b", sona="k", sona_rid="B")]
    stand.runner.step(scheduled({"a": 1, "b": 3}, new=new, computed={"a": 3}, outputs={"a": 1}))
    assert stand.counters.missing_rows == 2
    assert len(stand.hook.unserved) == 0
    stand.table.put("k", 1, weights(D))  # wanted again
    stand.runner.step(scheduled({}, finished=["a", "b"]))
    stand.table._max_bytes = stand.table.nbytes
    stand.table.put("others", 1, weights(D))
    stand.runner.step(scheduled({"c": 3}, new=[new_request("c", sona="k", sona_rid="C")]))
    assert list(stand.hook.unserved.newest()) == ["C"]
