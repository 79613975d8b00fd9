"""Adapters, ring and captures by themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_vllm import weights
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream_adapters.vllm_plugin.adapters import AdapterTable
from sona_stream_adapters.vllm_plugin.plan import Captured
from sona_stream_adapters.vllm_plugin.refusal import Refusal
from sona_stream_adapters.vllm_plugin.ring import CaptureRing
from sona_stream_adapters.vllm_plugin.settings import SettingsError, is_enabled, read_settings
from sona_stream_adapters.vllm_plugin.staging import Block, Scored, States, own

D = 16
SIZE = 2 * 2 * D * 4
"""bytes of one rank-2 adapter"""


def test_the_least_recently_used_goes_and_replaced_versions_go_first():
    table = AdapterTable(max_bytes=3 * SIZE)
    table.put("a", 1, weights(D))
    table.put("b", 1, weights(D))
    table.put("b", 2, weights(D))
    table.put("c", 1, weights(D))
    assert [(a.key, a.version) for a in table] == [("a", 1), ("b", 2), ("c", 1)]
    table.hold("a", None)
    table.release("a", None)
    table.put("d", 1, weights(D))
    assert {a.key for a in table} == {"a", "c", "d"}
    assert table.evictions == 2


def test_what_a_live_request_holds_stays_and_a_full_table_refuses():
    table = AdapterTable(max_bytes=2 * SIZE)
    table.put("a", 1, weights(D))
    table.put("a", 2, weights(D))
    table.hold("a", 1)
    table.hold("a", None)
    with pytest.raises(Refusal, match="SONA_VLLM_ADAPTER_MB"):
        table.put("b", 1, weights(D))
    table.release("a", 1)
    table.put("b", 1, weights(D))
    assert table.find("a", 1) is None
    assert table.find("a", None).version == 2
    table.put("b", 1, weights(D, seed=1))  # the same version again takes its own place
    assert table.nbytes == 2 * SIZE


def test_an_older_version_put_again_is_current_and_drops_are_counted():
    table = AdapterTable(max_bytes=10 * SIZE)
    for version in (1, 2, 1):
        table.put("a", version, weights(D))
    assert table.find("a", None).version == 1
    assert table.drop("a", 1) == 1
    assert table.find("a", None) is None
    assert table.find("a", 2).version == 2
    assert table.drop("a") == 1
    assert table.nbytes == 0


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 2**16))
def test_the_gain_is_the_largest_a_row_can_move(rank, base_rank, seed):
    both = weights(D, rank=rank, base_rank=base_rank, seed=seed)
    adapter = AdapterTable(max_bytes=1 << 20).put("a", 1, both)
    whole = sum(pair.lora_B.astype(float) @ pair.lora_A for pair in (both.micro, both.base) if pair is not None)
    assert adapter.gain == pytest.approx(np.linalg.norm(whole, 2), rel=1e-5)
    assert torch.allclose(adapter.B.T @ adapter.A, torch.tensor(whole).float(), atol=1e-5)


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), max_size=40))
def test_the_ring_gives_back_exactly_what_it_still_holds(sizes):
    ring, told, marks, value = CaptureRing(12, 3, torch.float32), {}, {}, 0
    for size in sizes:
        first = ring.reserve(size)
        rows = range(first, first + size)
        values = torch.arange(value, value + size)
        hidden = values[:, None].float().expand(size, 3)
        even = value % 2 == 0  # neighbours in the ring that were adapted, cut and scored, and others that were not
        extra = {"served": hidden + 1, "capped": values % 5 == 0} if even else {}
        scored = Scored([0], values[:1].float(), torch.full((1,), 0.5)) if even else None
        ids, versions = torch.where(values % 3 == 0, -1, values), np.arange(value, value + size, dtype=np.int32)
        scores = [] if scored is None else [(0, scored)]
        served, capped = extra.get("served"), extra.get("capped")
        ring.write(Block(first, ids, versions, even, even, hidden, served, capped, scores))
        marks |= {row: (even, even and row == first) for row in rows}
        told |= {row: int(v) for row, v in zip(rows, values, strict=True)}
        value += size
        for row, expected in told.items():
            if ring.lost([row]):
                continue
            found = ring.read([row])
            if expected % 3 == 0:
                assert len(found.token_ids) == 0
            else:
                assert found.token_ids.tolist() == [expected] == found.versions.tolist()
                assert found.hidden.tolist() == [[expected] * 3]
                even, known = marks[row]
                assert found.served.tolist() == [[expected + even] * 3]
                assert found.capped.tolist() == [even and expected % 5 == 0]
                assert found.scored.tolist() == [known]
                assert found.memory.tolist() == [0.5 if known else 0.0]
                assert not known or found.logprobs.tolist() == [expected]
    kept = [row for row in told if not ring.lost([row])]
    assert len(kept) >= min(len(told), 12 - 4)
    assert kept == sorted(told)[-len(kept) :] if kept else True
    with pytest.raises(ValueError, match="13 rows"):
        ring.reserve(13)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_steps_that_wait_are_written_as_if_each_was(data):
    """Together or alone, over the ring's end, rows chosen or all, drafts, counts of accepted ones."""
    ring, told = CaptureRing(16, 2, torch.float32), {}
    layouts = [
        captured_of([0, 1, 2]),
        captured_of([0, 1, 2], adapted=True),
        captured_of([0, 2], adapted=True, cuttable=True),
        captured_of([1, 2], drafts=[0, 1]),
    ]
    for number in range(data.draw(st.integers(1, 60))):
        captured = data.draw(st.sampled_from(layouts))
        first = ring.reserve(captured.count)
        hidden = torch.full((3, 2), float(number)) + torch.tensor([[0.0], [0.25], [0.5]])
        adapted, cut, said = captured.adapted, captured.cuttable, captured.count == 2
        ids = torch.arange(6 + 3 * (number % 5 == 0)).reshape(3, -1) + 100 * number
        accepted = torch.tensor([1, 0, 2]) if said else None
        scored = Scored([0], torch.full((1,), -1.0), torch.zeros(1)) if data.draw(st.booleans()) else None
        served, capped = hidden + 1000 if adapted else None, hidden[:, 0] > number if cut else None
        ring.stage(captured, first, ids, accepted, States(hidden, served, capped), scored)
        rows = range(3) if captured.rows is None else captured.rows.tolist()
        drafts = [0] * captured.count if captured.drafts is None else captured.drafts.tolist()
        for place, (row, request, draft) in enumerate(zip(rows, captured.requests.tolist(), drafts, strict=True)):
            kept = not said or int(accepted[request]) > draft
            told[first + place] = (
                [float(hidden[row, 0])] if kept else [],
                [float(hidden[row, 0]) + 1000 * adapted] if kept else [],
                [int(ids[request, draft])] if kept else [],
                [bool(capped[row]) if cut else False] if kept else [],
                [scored is not None and place == 0] if kept else [],
            )
    for row, expected in told.items():
        if not ring.lost([row]):
            found = ring.read([row])
            parts = (found.hidden[:, 0], found.served[:, 0], found.token_ids, found.capped, found.scored)
            assert tuple(part.tolist() for part in parts) == expected


def captured_of(rows, drafts=None, *, adapted=False, cuttable=False):
    """Each row its own request's, or with `drafts` all the last request's."""
    return Captured(
        rows=None if len(rows) == 3 else torch.tensor(rows),
        count=len(rows),
        owners=[],
        requests=torch.tensor(rows if drafts is None else [2] * len(rows)),
        drafts=None if drafts is None else torch.tensor(drafts),
        now=[],
        now_rows=None,
        now_inverse_t=None,
        versions=np.zeros(len(rows), np.int32),
        adapted=adapted,
        cuttable=cuttable,
    )


def test_what_is_part_of_a_larger_buffer_is_copied():
    buffer = torch.zeros(8, 4)
    kept, copied = own(buffer), own(buffer[:2])
    buffer += 1
    assert kept is buffer
    assert not copied.any()


def test_settings_name_the_variable():
    assert read_settings({}).adapter_bytes == 64 << 20
    assert read_settings({"SONA_VLLM_RING_TOKENS": "100"}).ring_tokens == 100
    for name, value in (
        ("SONA_VLLM_ADAPTER_MB", "-1"),
        ("SONA_VLLM_RING_TOKENS", "many"),
        ("SONA_VLLM_MAX_RANK", "0"),
        ("SONA_VLLM_MAX_DELTA", "nan"),
    ):
        with pytest.raises(SettingsError, match=name):
            read_settings({name: value})
    assert is_enabled({"SONA_VLLM": "1"})
    assert not is_enabled({})
    with pytest.raises(SettingsError, match="SONA_VLLM"):
        is_enabled({"SONA_VLLM": "yes"})
    assert "secret" not in repr(read_settings({"SONA_VLLM_KEY": "secret"}))
