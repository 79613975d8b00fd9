"""The watched folder, its settings, and one table for several ranks."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from sona_stream_adapters.vllm_plugin.logit_bias.file import Limits, TenantBias, write_bias
from sona_stream_adapters.vllm_plugin.logit_bias.folder import BiasFolder
from sona_stream_adapters.vllm_plugin.logit_bias.settings import BiasSettings, read_bias_settings
from sona_stream_adapters.vllm_plugin.logit_bias.shared import EVERY, SharedTable
from sona_stream_adapters.vllm_plugin.settings import SettingsError

VOCAB = 320


def put(folder, tenant, value):
    ids = np.array([3, 7], np.int32)
    return write_bias(folder, TenantBias(tenant, ids, np.full(2, value, np.float32), VOCAB))


def values(folder):
    return {tenant: float(bias.bias[0]) for tenant, bias in folder.table.items()}


@pytest.fixture
def watched(tmp_path):
    return BiasFolder(BiasSettings(folder=tmp_path / "bias", tenants=3), VOCAB)


def test_files_come_change_and_go(watched, tmp_path):
    put(tmp_path / "bias", "acme", 1)
    put(tmp_path / "bias", "a/b", 2)
    watched.scan()
    first = watched.table
    assert values(watched) == {"acme": 1, "a/b": 2}
    watched.scan()
    assert watched.table is first
    put(tmp_path / "bias", "acme", 3).with_name("a%2Fb.safetensors").unlink()
    watched.scan()
    assert values(watched) == {"acme": 3}
    assert {k: v for k, v in watched.counts.items() if v} == {"loaded": 3, "removed": 1}
    assert dict(first).keys() == {"acme", "a/b"}  # whoever holds the old table has it whole


def test_a_broken_file_keeps_the_previous_bias_and_is_said_once(watched, tmp_path, caplog):
    path = put(tmp_path / "bias", "acme", 1)
    watched.scan()
    path.write_bytes(b"nonsense")
    for _ in range(3):
        watched.scan()
    assert values(watched) == {"acme": 1}
    assert watched.counts["broken_files"] == 1
    assert sum("the previous bias stays" in record.message for record in caplog.records) == 1
    put(tmp_path / "bias", "acme", 2)
    watched.scan()
    assert values(watched) == {"acme": 2}


def test_a_new_broken_file_serves_nothing(watched, tmp_path, caplog):
    (tmp_path / "bias").mkdir()
    (tmp_path / "bias" / "acme.safetensors").write_bytes(b"")
    watched.scan()
    assert values(watched) == {}
    assert "nothing is served from it" in caplog.text
    (tmp_path / "bias" / "acme.safetensors").unlink()
    watched.scan()
    assert watched.counts["removed"] == 0


def test_other_files_are_none_of_its_business(watched, tmp_path):
    put(tmp_path / "bias", "acme", 1)
    for name in (".acme.safetensors", "acme.safetensors.tmp", "README"):
        (tmp_path / "bias" / name).write_bytes(b"x")
    (tmp_path / "bias" / "folder.safetensors").mkdir()
    watched.scan()
    assert values(watched) == {"acme": 1}
    assert watched.counts["broken_files"] == 0


def test_the_number_of_tenants_is_bounded(watched, tmp_path, caplog):
    for i in range(5):
        put(tmp_path / "bias", f"t{i}", i)
    watched.scan()
    assert set(values(watched)) == {"t0", "t1", "t2"}
    assert watched.counts["refused_files"] == 2
    assert "SONA_VLLM_BIAS_TENANTS=3" in caplog.text
    put(tmp_path / "bias", "t1", 9)  # those who are served go on being served
    watched.scan()
    assert values(watched)["t1"] == 9


def test_while_the_folder_is_away_everything_stays(watched, tmp_path, caplog):
    for _ in range(2):
        watched.scan()
    assert watched.counts["folder_errors"] == 2
    assert sum("cannot be read now" in record.message for record in caplog.records) == 1
    put(tmp_path / "bias", "acme", 1)
    watched.scan()
    os.rename(tmp_path / "bias", tmp_path / "away")
    watched.scan()
    assert values(watched) == {"acme": 1}


def test_it_looks_by_itself_while_writers_replace(tmp_path):
    """Readers see old or new files, never a half: two writers replace as fast as they can."""
    folder = BiasFolder(BiasSettings(folder=tmp_path, poll_s=0.01), VOCAB)
    put(tmp_path, "acme", 0)
    folder.start()
    try:

        def write(low):
            for i in range(50):
                put(tmp_path, "acme", low + i % 10)

        writers = [threading.Thread(target=write, args=(low,)) for low in (0, 10)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        put(tmp_path, "acme", 20)
        deadline = time.monotonic() + 10
        while values(folder) != {"acme": 20}:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert folder.counts["broken_files"] == 0
    finally:
        folder.close()
    assert not any(thread.name == "sona-logit-bias" for thread in threading.enumerate())


def test_settings():
    made = read_bias_settings(
        {
            "SONA_VLLM_BIAS_DIR": "/x",
            "SONA_VLLM_BIAS_POLL_MS": "20",
            "SONA_VLLM_BIAS_TENANTS": "5",
            "SONA_VLLM_BIAS_TOKENS": "7",
            "SONA_VLLM_BIAS_MAX": "2.5",
        }
    )
    assert made == BiasSettings(folder=Path("/x"), poll_s=0.02, tenants=5, limits=Limits(7, 2.5))
    assert read_bias_settings({"SONA_VLLM_BIAS_DIR": "/x"}) == BiasSettings(folder=Path("/x"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SONA_VLLM_BIAS_DIR", ""),
        ("SONA_VLLM_BIAS_POLL_MS", "soon"),
        ("SONA_VLLM_BIAS_POLL_MS", "0"),
        ("SONA_VLLM_BIAS_TENANTS", "0"),
        ("SONA_VLLM_BIAS_TOKENS", "nan"),
        ("SONA_VLLM_BIAS_MAX", "-1"),
    ],
)
def test_a_bad_setting_is_named(name, value):
    with pytest.raises(SettingsError, match=name):
        read_bias_settings({"SONA_VLLM_BIAS_DIR": "/x", name: value})


def test_all_ranks_change_over_in_the_same_step(tmp_path):
    """Two ranks in lock step: whatever rank 0 sees and when, both serve the same in each step."""
    folder = BiasFolder(BiasSettings(folder=tmp_path), VOCAB)
    wire = []

    def tell(news):
        wire.append(news)
        return news

    first = SharedTable(folder, tell)
    second = SharedTable(None, lambda nothing: wire[-1])
    seen = []
    for step in range(5 * EVERY):
        if step == 3:
            put(tmp_path, "acme", 1)
            put(tmp_path, "beta", 5)
        if step == EVERY + 9:
            put(tmp_path, "acme", 2)
        if step == 2 * EVERY + 1:
            (tmp_path / "acme.safetensors").unlink()
        folder.scan()
        tables = [{t: float(b.bias[0]) for t, b in one.step().items()} for one in (first, second)]
        assert tables[0] == tables[1]
        if not seen or seen[-1] != tables[0]:
            seen.append(tables[0])
    assert seen == [{}, {"acme": 1, "beta": 5}, {"acme": 2, "beta": 5}, {"beta": 5}]
    assert [sorted(news or ()) for news in wire] == [[], ["acme", "beta"], ["acme"], ["acme"], []]
