"""The compiled step against torch's."""

from __future__ import annotations

import pytest
import torch
from fake_vllm import weights
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream_adapters.vllm_plugin.adapters import AdapterTable
from sona_stream_adapters.vllm_plugin.adapting import adapt
from sona_stream_adapters.vllm_plugin.native import NativeSteps
from sona_stream_adapters.vllm_plugin.plan import Adapted
from sona_stream_adapters.vllm_plugin.ring import CaptureRing

CPU, LIMIT = torch.device("cpu"), 0.5


def made(ring, limit=LIMIT):
    found = NativeSteps.find(CPU, torch.float32, ring.hidden_dim, limit, ring.addresses)
    assert found is not None
    return found


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_each_row_is_adapted_cut_and_kept_as_torch_would(data):
    d, n = data.draw(st.sampled_from([1, 7, 16, 129])), data.draw(st.integers(1, 9))
    table, ring = AdapterTable(max_bytes=1 << 24), CaptureRing(16, d, torch.float32)
    for i in range(3):
        scale = data.draw(st.sampled_from([0.0, 1e-3, 0.1, 3.0]))
        table.put(f"{i}", 1, weights(d, rank=1 + i, seed=i, scale=scale, base_rank=data.draw(st.integers(0, 9))))
    keys = [data.draw(st.sampled_from(["0", "1", "2", None])) for _ in range(n)]
    users = [(table.find(key, None), range(row, row + 1)) for row, key in enumerate(keys) if key is not None]
    picked = sorted(data.draw(st.sets(st.integers(0, n - 1))))
    hidden = torch.randn(n, d, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    if data.draw(st.booleans()):
        hidden[0] = 0.0
    before, place = hidden.clone(), data.draw(st.integers(0, 16 - len(picked)))

    step = made(ring).step(n, users, picked)
    cuts = [step.run(hidden, place) for _ in range(2)][1]

    expected, cut = hidden.clone(), torch.zeros(n, dtype=torch.bool)
    for adapter, own in users:
        row = own.start
        one = Adapted(None, 1, adapter.A.T, adapter.B, None, adapter.gain <= LIMIT)
        expected[row], capped = adapt(hidden[row : row + 1], one, LIMIT)
        cut[row] = capped is not None and bool(capped[0])
    assert torch.equal(hidden, before)
    assert cuts == int(cut.sum())
    served = hidden if step.changed is None else step.changed
    assert torch.allclose(served, expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(served[row], hidden[row]) for row, key in enumerate(keys) if key is None)
    own = slice(place, place + len(picked))
    assert torch.equal(ring._hidden[own], hidden[picked])
    if users:
        assert torch.equal(ring._served[own], served[picked])
        assert torch.equal(ring._capped[own], cut[picked])
    others = [row for row in range(16) if not own.start <= row < own.stop]
    assert not ring._hidden[others].any()
    assert not ring._served[others].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_spoils_no_other(bad):
    d, ring = 16, CaptureRing(4, 16, torch.float32)
    table = AdapterTable(max_bytes=1 << 20)
    users = [(table.put("x", 1, weights(d, scale=9.0)), range(3))]
    hidden = torch.randn(3, d)
    clean = made(ring).step(3, users, [])
    clean.run(hidden, 0)
    hidden[1, 3] = bad
    step = made(ring).step(3, users, [])
    step.run(hidden, 0)
    assert torch.equal(step.changed[[0, 2]], clean.changed[[0, 2]])
    assert not torch.isfinite(step.changed[1]).all()


def test_it_says_what_it_does_not_read():
    ring = CaptureRing(4, 8, torch.float32)
    step = made(ring).step(2, [], [0])
    for strange in (torch.ones(2, 8, dtype=torch.bfloat16), torch.ones(2, 9), torch.ones(8, 2).T):
        assert step.run(strange, 0) == -1
    assert not ring._hidden.any()
    assert NativeSteps.find(CPU, torch.bfloat16, 8, 1.0, ring.addresses) is None
    assert NativeSteps.find(torch.device("meta"), torch.float32, 8, 1.0, ring.addresses) is None
