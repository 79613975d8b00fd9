"""One tenant's bias file: what was written is read, and nothing else is served."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from sona_stream_adapters.vllm_plugin.logit_bias.file import (
    BadBias,
    Limits,
    TenantBias,
    file_name,
    read_bias,
    write_bias,
)

VOCAB = 320


def bias(tenant="acme", ids=(1, 5, 9), values=(0.5, -1.0, 2.0), **changes):
    made = {"tenant": tenant, "token_ids": np.array(ids, np.int32), "bias": np.array(values, np.float32)}
    return TenantBias(**{**made, "vocab_size": VOCAB, "source": "m/acme/*@3", **changes})


def read(path, limits=None, vocab_size=VOCAB):
    return read_bias(path, limits or Limits(), vocab_size=vocab_size)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tenant=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256),
    entries=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-20, 20, width=32), min_size=1, max_size=50),
)
def test_what_was_written_is_read(tmp_path, tenant, entries):
    ids = sorted(entries)
    path = write_bias(tmp_path, bias(tenant, ids, [entries[i] for i in ids]))
    assert path.parent == tmp_path
    got = read(path)
    assert (got.tenant, got.source, got.token_ids.tolist()) == (tenant, "m/acme/*@3", ids)
    assert got.bias.tolist() == [entries[i] for i in ids]


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256), unique=True))
def test_names_are_safe_and_distinct(tenants):
    names = [file_name(tenant) for tenant in tenants]
    assert len(set(names)) == len(tenants)
    for name in names:
        assert os.path.basename(name) == name
        assert not name.startswith(".")
        assert len(name.encode()) <= 255


@pytest.mark.parametrize("tenant", ["", "x" * 257, "\ud800"])
def test_impossible_names_are_refused(tmp_path, tenant):
    with pytest.raises(BadBias, match="name must"):
        write_bias(tmp_path, bias(tenant))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ids": (1, 5, 320)}, "0 to 319"),
        ({"ids": (-1, 5, 9)}, "0 to 319"),
        ({"ids": (1, 9, 5)}, "ascending"),
        ({"ids": (1, 5, 5)}, "distinct"),
        ({"values": (0.5, np.nan, 1)}, "finite"),
        ({"values": (0.5, np.inf, 1)}, "finite"),
        ({"values": (0.5, 1)}, r"\(n,\)"),
        ({"ids": (), "values": ()}, "0 tokens"),
        ({"token_ids": np.array([1, 5, 9], np.int64)}, "int32"),
    ],
)
def test_bad_numbers_are_not_written(tmp_path, changes, told):
    with pytest.raises(BadBias, match=told):
        write_bias(tmp_path, bias(**changes))
    assert list(tmp_path.iterdir()) == []


def forged(path, *, words=(), **tensors):
    good = {"token_ids": np.array([1, 5], np.int32), "bias": np.array([0.5, 1], np.float32)}
    metadata = {"format": "sona-logit-bias-1", "tenant": "acme", "vocab_size": "320", "source": ""}
    save_file({k: v for k, v in {**good, **tensors}.items() if v is not None}, path, {**metadata, **dict(words)})
    return path


@pytest.mark.parametrize(
    ("words", "tensors", "told"),
    [
        ({"format": "other"}, {}, "format"),
        ({"tenant": "beta"}, {}, "must be named beta"),
        ({"tenant": ""}, {}, "name must"),
        ({"vocab_size": "321"}, {}, "vocabulary"),
        ({"vocab_size": "many"}, {}, "vocabulary"),
        ({}, {"bias": None}, "not bias and token_ids"),
        ({}, {"more": np.zeros(1)}, "not bias and token_ids"),
        ({}, {"bias": np.array([0.5, np.nan], np.float32)}, "finite"),
        ({}, {"bias": np.array([0.5, 21], np.float32)}, r"within \+-20"),
        ({}, {"bias": np.array([[0.5, 1]], np.float32)}, r"\(n,\)"),
        ({}, {"bias": np.array([0.5, 1], np.float64)}, "float32"),
        ({}, {"token_ids": np.array([1, 320], np.int32)}, "0 to 319"),
        ({}, {"token_ids": np.array([-1, 3], np.int32)}, "0 to 319"),
    ],
)
def test_a_file_that_may_not_be_served_is_refused(tmp_path, words, tensors, told):
    with pytest.raises(BadBias, match=told):
        read(forged(tmp_path / "acme.safetensors", words=words, **tensors))


def test_size_and_count_are_bounded(tmp_path):
    path = write_bias(tmp_path, bias(ids=range(300), values=[1.0] * 300))
    assert len(read(path, Limits(tokens=300)).bias) == 300
    with pytest.raises(BadBias, match="1 to 299"):
        read(path, Limits(tokens=299))
    path.write_bytes(b"\0" * (1 << 20))
    with pytest.raises(BadBias, match="longer"):
        read(path, Limits(tokens=300))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), cut=st.integers(0, 400), at=st.integers(0, 400), byte=st.integers(0, 255))
def test_damaged_files_are_refused_or_sound(tmp_path, data, cut, at, byte):
    path = write_bias(tmp_path, bias())
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[at % len(whole)] = byte
    for damaged in (data, whole[: cut % len(whole)], bytes(flipped), whole + data):
        path.write_bytes(damaged)
        try:
            got = read(path)
        except BadBias:
            continue
        assert got.tenant == "acme"
        assert np.isfinite(got.bias).all()
        assert ((got.token_ids >= 0) & (got.token_ids < VOCAB)).all()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_bias(tmp_path, bias())
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bias(tmp_path, bias(values=(1, 1, 1)))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before
