"""The logits processors as vLLM drives them, with fakes in place of vLLM: rows, moves, faults."""

from __future__ import annotations

import enum
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream_adapters.vllm_plugin import logits as module
from sona_stream_adapters.vllm_plugin.logit_bias.file import TenantBias, write_bias
from sona_stream_adapters.vllm_plugin.logit_bias.rows import RowBias, apply_batch_update, tenant_of
from sona_stream_adapters.vllm_plugin.settings import SettingsError

VOCAB = 50


class Move(enum.Enum):
    UNIDIRECTIONAL = 0
    SWAP = 1


def params(tenant=None, **extra):
    named = {} if tenant is None else {"sona_tenant": tenant}
    return types.SimpleNamespace(extra_args={**named, **extra} or None)


def update(removed=(), added=(), moved=()):
    return types.SimpleNamespace(
        removed=list(removed), added=[(i, params(t), None, []) for i, t in added], moved=list(moved)
    )


def config(tp=1):
    return types.SimpleNamespace(
        model_config=types.SimpleNamespace(get_vocab_size=lambda: VOCAB),
        parallel_config=types.SimpleNamespace(tensor_parallel_size=tp),
    )


def made(tenant, ids, value):
    ids = np.array(sorted(ids), np.int32)
    return TenantBias(tenant, ids, np.full(len(ids), value, np.float32), VOCAB)


def wanted(logits, rows, table):
    """The definition, one entry after the other."""
    out = logits.clone()
    for row, tenant in rows.items():
        if tenant in table:
            for token, value in zip(table[tenant].token_ids, table[tenant].bias, strict=True):
                out[row, int(token)] += float(value)
    return out


def same_bits(a, b):
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SONA_VLLM_BIAS_DIR", str(tmp_path))
    write_bias(tmp_path, made("acme", [1, 4, 30], 2.0))
    write_bias(tmp_path, made("beta", [4, 49], -3.0))
    return tmp_path


@pytest.fixture
def v1(folder):
    processor = module.TenantBias(config(), torch.device("cpu"), False)
    yield processor
    processor.serving.folder.close()


@pytest.fixture
def v2(folder):
    processor = module.TenantBias(config(), types.SimpleNamespace(vocab_size=VOCAB, max_num_reqs=8))
    yield processor
    processor.serving.folder.close()


def table(processor):
    return processor.serving.folder.table


def odd_logits(rows=6):
    """With the values whose bits a careless `+ 0` changes."""
    logits = torch.randn(rows, VOCAB)
    logits[:, 0], logits[:, 4], logits[:, 2] = -0.0, -torch.inf, torch.nan
    return logits


def test_one_class_picks_by_what_it_is_made_with(v1, v2):
    assert type(v1) is module.V1TenantBias
    assert type(v2) is module.V2TenantBias
    assert v1.is_argmax_invariant() is False


def test_v1_adds_to_the_tenants_rows_alone(v1):
    v1.update_state(update(added=[(0, None), (1, "acme"), (2, "nobody"), (3, "beta"), (4, None)]))
    logits = odd_logits(5)
    before = logits.clone()
    assert v1.apply(logits) is logits
    assert same_bits(logits, wanted(before, {1: "acme", 3: "beta"}, table(v1)))
    for row in (0, 2, 4):
        assert same_bits(logits[row], before[row])
    assert not same_bits(logits[1], before[1])
    assert v1.serving.stats()["biased_rows"] == 2


def test_v1_without_tenants_touches_nothing(v1):
    v1.update_state(None)
    logits = odd_logits()
    before = logits.clone()
    assert same_bits(v1.apply(logits), before)


def test_v1_serves_a_new_file_from_the_next_step(v1, folder):
    v1.update_state(update(added=[(0, "acme"), (1, "gamma")]))
    logits = torch.zeros(2, VOCAB)
    v1.apply(logits)
    write_bias(folder, made("acme", [7], 9.0))
    write_bias(folder, made("gamma", [8], 1.0))
    v1.serving.folder.scan()
    logits = torch.zeros(2, VOCAB)
    v1.apply(logits)
    assert logits[0, 7] == 0  # within one step the table stays
    v1.update_state(None)
    logits = torch.zeros(2, VOCAB)
    v1.apply(logits)
    assert logits.nonzero().tolist() == [[0, 7], [1, 8]]


tenants = st.sampled_from([None, "acme", "beta", "nobody"])
ops = st.one_of(
    st.tuples(st.just("add"), tenants),
    st.tuples(st.just("remove"), st.integers(0, 7)),
    st.tuples(st.just("swap"), st.integers(0, 7), st.integers(0, 7)),
)


@settings(deadline=None)
@given(st.lists(st.lists(ops, max_size=5), max_size=8))
def test_v1_rows_follow_the_persistent_batch(steps):
    """Against a plain list: removed rows are filled from the end, as vLLM condenses its batch."""
    batch: list[str | None] = []
    rows: dict[int, str] = {}
    for step in steps:
        added, removed, moved = [], [], []
        for op in step:
            if op[0] == "remove" and op[1] < len(batch) and op[1] not in removed and not added and not moved:
                removed.append(op[1])
        held = {i: t for i, t in enumerate(batch) if i not in removed}
        holes = sorted(removed)
        for op in step:
            if op[0] == "add":
                index = holes.pop(0) if holes else len(batch) + sum(i >= len(batch) for i, _ in added)
                added.append((index, op[1]))
                held[index] = op[1]
        while holes:
            last = max(held, default=-1)
            if last <= holes[0]:
                break
            hole = holes.pop(0)
            moved.append((last, hole, Move.UNIDIRECTIONAL))
            held[hole] = held.pop(last)
        for op in step:
            if op[0] == "swap" and op[1] in held and op[2] in held and op[1] != op[2]:
                moved.append((op[1], op[2], Move.SWAP))
                held[op[1]], held[op[2]] = held[op[2]], held[op[1]]
        batch = [held[i] for i in sorted(held)]
        assert sorted(held) == list(range(len(batch)))
        apply_batch_update(rows, update(removed, added, moved))
        assert rows == {i: t for i, t in enumerate(batch) if t is not None}


def context(slots, per_request=None):
    counts = per_request or [1] * len(slots)
    expanded = np.repeat(slots, counts)
    return types.SimpleNamespace(
        idx_mapping_np=np.array(slots, np.int32), expanded_idx_mapping=torch.from_numpy(expanded.astype(np.int32))
    ), expanded


@settings(deadline=None)
@given(
    slots=st.permutations(range(8)).flatmap(lambda p: st.integers(1, 8).map(lambda n: p[:n])),
    owners=st.lists(tenants, min_size=8, max_size=8),
    counts=st.lists(st.integers(1, 3), min_size=8, max_size=8),
    speculative=st.booleans(),
)
def test_v2_rows_belong_to_slots(slots, owners, counts, speculative):
    known = {"acme": made("acme", [1, 4, 30], 2.0), "beta": made("beta", [4, 49], -3.0)}
    ctx, expanded = context(slots, counts[: len(slots)] if speculative else None)
    processor = module.V2TenantBias.__new__(module.V2TenantBias)
    processor._tenants = {}
    processor.serving = types.SimpleNamespace(table=known, rows=RowBias())
    for slot, owner in enumerate(owners):
        assert processor.add_request(slot, params(owner)) is (owner is not None)
    logits = odd_logits(len(expanded))
    before = logits.clone()
    processor._add(logits, ctx)
    rows = {row: owners[slot] for row, slot in enumerate(expanded) if owners[slot]}
    assert same_bits(logits, wanted(before, rows, known))


def test_v2_slots_are_taken_over(v2):
    ctx, _ = context([5, 2])
    v2.add_request(5, params("acme"))
    v2.add_request(2, params())
    for tenant, expected in (("acme", [[0, 1], [0, 4], [0, 30]]), (None, []), ("beta", [[0, 4], [0, 49]])):
        v2.add_request(5, params(tenant))
        v2.apply_staged_writes()
        logits = torch.zeros(2, VOCAB)
        v2.apply(logits, ctx)
        assert logits.nonzero().tolist() == expected


@pytest.mark.parametrize("tenant", ["", 7, "x" * 257, ["acme"]])
def test_a_tenant_that_is_no_name_is_refused_at_the_door(tenant):
    for cls in (module.TenantBias, module.V1TenantBias, module.V2TenantBias):
        cls.validate_params(params())
        cls.validate_params(params("acme", other=1))
        with pytest.raises(ValueError, match="sona_tenant"):
            cls.validate_params(params(tenant))


def test_what_is_no_name_binds_nothing():
    assert tenant_of(params(7)) is None
    assert tenant_of(types.SimpleNamespace(extra_args=None)) is None
    assert tenant_of(object()) is None


@pytest.mark.parametrize("where", ["apply", "update_state", "step"])
def test_an_error_switches_it_off_and_the_server_lives(v1, caplog, monkeypatch, where):
    v1.update_state(update(added=[(0, "acme")]))

    def broken(*_):
        raise RuntimeError("forced")

    if where == "apply":
        monkeypatch.setattr(v1.serving.rows, "add", broken)
    elif where == "step":
        monkeypatch.setattr(v1.serving.shared, "step", broken)
    else:
        monkeypatch.setattr(module, "apply_batch_update", broken)
    for _ in range(3):
        v1.update_state(update(added=[(1, "beta")]))
        logits = odd_logits(2)
        before = logits.clone()
        assert v1.apply(logits) is logits
        assert same_bits(logits, before)
    assert "forced" in v1.serving.disabled
    assert sum("switched off" in record.message for record in caplog.records) == 1
    assert "forced" in v1.serving.stats()["disabled"]


def test_a_layout_that_does_not_fit_changes_nothing(v1):
    v1.update_state(update(added=[(0, "beta"), (3, "acme")]))
    logits = odd_logits(2)
    before = logits.clone()
    assert same_bits(v1.apply(logits), before)
    assert "row 3 of 2" in v1.serving.disabled


def test_a_start_without_a_folder_says_what_to_set(monkeypatch):
    monkeypatch.delenv("SONA_VLLM_BIAS_DIR", raising=False)
    with pytest.raises(SettingsError, match="SONA_VLLM_BIAS_DIR is not set"):
        module.TenantBias(config(), torch.device("cpu"), False)


def test_counters_are_there_for_who_asks(v1):
    found = module.bias_stats()
    assert found["tenants"] >= 0
    assert {"loaded", "broken_files", "disabled"} <= found.keys()
