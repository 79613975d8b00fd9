"""`benchmarks/vllm_learning.py`: its statistics, its rows and what it keeps. No server here."""

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from report import Report

sys.path.append(str(Path(__file__).parents[2] / "examples"))

import live_adaptation as live
import vllm_env
import vllm_learning
from vllm_learning_parts import kept, verdict
from vllm_learning_parts.kept import Seed
from vllm_learning_parts.tenants import Greedy

from sona_stream.config.keys import hash_key

GOOD, BAD = "Bees make honey from the nectar that they gather.", "Bees make honey"


def answers(good, *, questions=8):
    """``good``: share of good answers to each question; a sample more or less by the question's number."""
    made = []
    for i in range(questions):
        right = min(live.SAMPLES, round(good * live.SAMPLES) + i % 2)
        texts = [GOOD] * right + [BAD] * (live.SAMPLES - right)
        made += [live.Answer(f"{i}: how do bees make honey?", text, "stop", f"r{i}") for text in texts]
    return made


def looked(*texts):
    return [Greedy(f"q{i}", text, "stop", (-0.25, -0.5)) for i, text in enumerate(texts)]


def seed(before=0.25, after=0.75, control=0.25, now=("one", "two")):
    outcome = live.Outcome(answers(before), answers(after), answers(control))
    return Seed(outcome, (looked("one", "two"), looked(*now)), "m/learn-0/*@9", 200, 60.0)


def rows_of(*seeds):
    report = Report("test")
    verdict.rows(report, seeds)
    return {row.id: row for row in report.rows}


def test_what_rose_is_told_from_what_did_not():
    rows = rows_of(seed(), seed())
    assert rows["tenant_a.after"].value > rows["tenant_a.before"].value
    assert rows["tenant_a.gain_low"].ok
    assert rows["tenant_a.over_control_low"].ok
    assert rows["tenant_a.control_shift_low"].ok is None
    assert rows["tenant_a.feedbacks"].ok
    assert (rows["tenant_b_identical"].value, rows["tenant_b_identical"].ok) == (1.0, True)
    assert rows["tenant_b_identical"].compared["logprobs apart by"] == 0.0


def test_no_change_at_all_is_no_gain():
    rows = rows_of(seed(after=0.25))
    assert rows["tenant_a.gain_low"].ok is False
    assert rows["tenant_a.over_control_low"].ok is False


def test_one_changed_answer_of_tenant_b_is_seen():
    row = rows_of(seed(), seed(now=("one", "2")))["tenant_b_identical"]
    assert (row.value, row.ok) == (0.75, False)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Normal differences with effects of seed and question, against the known mean."""
    rng = np.random.default_rng(1)
    covered = 0
    for i in range(200):
        drawn = 0.3 + 0.2 * rng.standard_normal((1, 32)) + 0.1 * rng.standard_normal((5, 32))
        low, high = verdict.bootstrap(drawn, resamples=400, seed=i)
        covered += low < 0.3 < high
    assert covered >= 180


def test_a_kept_seed_comes_back_and_one_of_other_code_does_not(tmp_path):
    file = kept.kept_file(tmp_path / "new" / "out.json", 3)
    assert kept.load(file, "abc") is None
    kept.save(file, seed(), "abc")
    assert kept.load(file, "abc") == seed()
    assert kept.load(file, "other") is None
    assert [path.name for path in file.parent.iterdir()] == ["out.seed3.json"]
    assert len(kept.state_of_code()) == 16


def test_a_seed_of_another_vllm_or_another_launcher_is_measured_again(tmp_path, monkeypatch):
    monkeypatch.setenv(vllm_env.VARIABLE, str(tmp_path))
    found = {kept.state_of_code()}
    assert vllm_env.vllm_version() is None
    for version in ("0.27.0", "0.32.0+cpu"):
        folder = tmp_path / "lib" / "python3.12" / "site-packages" / "vllm.dist-info"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
        assert vllm_env.vllm_version() == version
        found.add(kept.state_of_code())
    assert len(found) == 3
    assert "served.py" in {file.name for file in kept._ALSO}


def test_a_whole_run_of_kept_seeds_starts_no_server(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out.json"
    for number in range(vllm_learning.SEEDS):
        kept.save(kept.kept_file(out, number), seed(), kept.state_of_code())
    monkeypatch.setattr(vllm_learning, "both_servers", None)
    monkeypatch.setattr(verdict, "RESAMPLES", 200)
    vllm_learning.main(["--json", str(out), "--check"])
    assert "tenant_b_identical" in capsys.readouterr().out
    kept.save(kept.kept_file(out, 0), seed(after=0.25), kept.state_of_code())
    with pytest.raises(SystemExit, match="gain_low"):
        vllm_learning.main(["--json", str(out), "--check", "--quick"])


def test_the_configuration_is_the_live_examples_with_vllm_in_it():
    text, keys = vllm_learning.config([2, 4], "http://127.0.0.1:1/v1", "control-key-of-the-tests")
    settings = yaml.safe_load(text)
    (entry,) = settings["model_list"]
    assert entry["litellm_params"]["model"] == f"vllm/{live.MODEL}"
    assert "concise" in settings["sona"]["metrics"]
    tenants = {key["key"]: key["tenant"] for key in settings["sona"]["keys"]}
    assert tenants[hash_key(keys["B"])] == "b"
    assert [tenants[hash_key(key)] for key in (*keys[2], keys[4][0])] == [
        "learn-0",
        "control-0",
        "operator",
        "learn-1",
    ]
    assert set(keys) == {2, 4, "B"}
