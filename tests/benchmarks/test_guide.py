"""`benchmarks/guide.py`: its arithmetic, its clock, its tasks and its rows. No figure is judged here."""

import asyncio
import dataclasses
import json
import time

import numpy as np
import original
import pytest
from guide import SECTIONS, main, measure, parser
from guide_parts import learning, memory, patterns, pipeline, speed
from guide_parts.plan import QUICK, Run, compared
from guide_parts.rounds import block_of, interleave, middle
from original import Original, OriginalUnavailable
from report import Report

from sona_stream.engine import SonaConfig

TINY = dataclasses.replace(
    QUICK, rounds=2, block_s=1e-5, force_learn=40, patterns=(25,), tokens=64, streams=1, learning=8
)


def rows_of(section):
    report = Report("test")
    section(report, Run(TINY))
    return {row.id: row for row in report.rows}


def test_ratios_are_above_one_where_ours_is_better():
    time_like = compared(2.0, guide=10.0, original=4.0)
    assert (time_like["ratio"], time_like["ratio_to_guide"]) == (2.0, 5.0)
    rate_like = compared(8.0, guide=2.0, original=16.0, more_is_better=True)
    assert (rate_like["ratio"], rate_like["ratio_to_guide"]) == (0.5, 4.0)
    absent = compared(8.0, guide="below 1", remark="why")
    assert (absent["original"], absent["ratio"], absent["ratio_to_guide"], absent["remark"]) == (
        None,
        None,
        None,
        "why",
    )
    assert compared(None, guide=1.0)["ratio_to_guide"] is None
    assert middle(None) is None
    assert middle([1.0, 2.0, 9.0], 10) == 20.0


def test_rounds_are_interleaved_and_every_second_one_is_reversed():
    order = []

    def block(name, seconds):
        def run(calls):
            order.append(name)
            return calls * seconds

        return run

    samples = interleave({"a": block("a", 1.0), "b": block("b", 2.0)}, rounds=3, block_s=1.0)
    assert "".join(order[-6:]) == "abbaab"
    assert samples == {"a": [1.0] * 3, "b": [2.0] * 3}


def test_a_block_calls_on_the_inputs_in_turn():
    seen = []
    assert block_of(seen.append, ["x", "y"])(5) > 0
    assert seen == ["x", "y", "x", "y", "x"]


async def test_the_clock_counts_every_beat_that_a_stall_delayed():
    async with patterns.clock() as late:
        await asyncio.sleep(0.01)
        time.sleep(0.05)  # noqa: ASYNC251  what it is there to see
        await asyncio.sleep(0.01)
    assert max(late) >= 0.04
    assert sum(each >= 0.01 for each in late) >= 35


def test_the_task_of_four_clusters_can_be_learned_and_not_from_random_rewards():
    config = dataclasses.replace(SonaConfig.research(32), micro_lora_lr=0.02, warn=False)
    learned, control = (learning.four_clusters(config, 600, 0, shuffled=shuffled) for shuffled in (False, True))
    assert 0.3 < learned.before < 0.7
    assert learned.gain_pct > 10
    assert learned.gain_pct > control.gain_pct + 10


async def test_the_pipeline_adapts_every_token_scores_and_records(monkeypatch):
    adapted = []
    monkeypatch.setattr(pipeline, "ANSWER", 20)

    class Engine:
        def apply_micro_lora(self, x):
            adapted.append(x)

    sink = pipeline.Collector()
    handle = pipeline.pipeline(pipeline.Model(Engine()), sink)
    async with handle(pipeline.request(1)) as events:
        seen = [event async for event in events]
    assert len(seen) == 22
    assert len(adapted) == 20
    assert all(x.shape == (3072,) for x in adapted)
    (trajectory,) = sink.trajectories
    assert trajectory.score.value is not None
    assert {"repetition", "logprob", "emptiness", "finish_reason"} <= set(trajectory.score.parts)
    assert trajectory.adapter is not None
    assert len(trajectory.token_ids) == 20

    async with handle(pipeline.request(2, adapted=False)) as events:
        assert len([event async for event in events]) == 22
    assert len(adapted) == 20


def test_speed_rows():
    rows = rows_of(speed.add_rows)
    assert {
        "micro_lora_us", "kernel_into_out_us", "micro_lora_ops_per_s", "micro_lora_batch32_us_per_row",
        "batch32_ms", "rank2_over_rank1", "simd_speedup_pct", "inferences_32_layers_per_s",
        "overhead_ms.research", "overhead_ms.edge",
    } <= set(rows)  # fmt: skip
    goals = {id: (row.goal, row.direction) for id, row in rows.items() if row.goal}
    assert goals["micro_lora_us"] == (3.5, "<=")
    assert goals["kernel_into_out_us"] == (2.5, "<=")
    assert goals["micro_lora_batch32_us_per_row"] == (1.5, "<=")
    assert goals["inferences_32_layers_per_s"] == (2000, ">=")
    assert {"numpy", "ratio_to_numpy", "floor", "times_floor"} <= set(rows["kernel_into_out_us"].compared)
    assert all(row.value is not None and np.isfinite(row.value) for row in rows.values())


def test_pattern_rows():
    rows = rows_of(patterns.add_rows)
    assert set(rows) == {
        "find_patterns_us.25",
        "force_learn_500_s",
        "force_learn_10000_s",
        "force_learn_loop_lag_p99_ms",
    }
    assert (rows["force_learn_10000_s"].goal, rows["force_learn_loop_lag_p99_ms"].goal) == (15, 20)


@pytest.mark.skipif(not memory.SMAPS.exists(), reason="this system does not tell the resident size of a process")
def test_a_child_tells_its_growth():
    answer = memory.child("edge", 50)
    assert answer["growth"] > 50 * 2 * 3072
    assert answer["imports"] > 1e6


def test_without_a_live_run_the_row_misses_its_goal(tmp_path):
    report = Report("test")
    learning.live(report, Run(TINY))
    assert report.rows[0].id == "quality_gain_pct"
    assert report.rows[0].ok is False
    assert "--live-json" in report.rows[0].compared["remark"]


def test_the_live_examples_json_becomes_a_gain(tmp_path):
    values = {"reward_before": 0.4, "reward_after": 0.6, "reward_control_after": 0.42, "distinct2_ratio": 1.0}
    file = tmp_path / "live.json"
    file.write_text(json.dumps({"rows": [{"id": id, "value": value} for id, value in values.items()]}))
    report = Report("test")
    learning.live(report, Run(TINY, live_json=file))
    (row,) = report.rows
    assert row.value == pytest.approx(50.0)
    assert row.ok is True
    assert row.compared["control"] == pytest.approx(5.0)


def test_the_command_writes_and_checks(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SECTIONS, "speed", lambda report, run: report.measured("x_us", [5.0], "us", goal=1.0))
    out = tmp_path / "out.json"
    with pytest.raises(SystemExit, match="goal missed: x_us"):
        main(["--only", "speed", "--quick", "--no-original", "--json", str(out), "--check"])
    written = json.loads(out.read_text())
    assert "quick" in written["benchmark"]
    assert [row["id"] for row in written["rows"]] == ["x_us"]
    assert parser().parse_args([]).only == list(SECTIONS)


def test_without_node_the_original_is_left_out_with_a_note(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(original.shutil, "which", lambda program: None)
    with pytest.raises(OriginalUnavailable, match="node is not installed"):
        Original.start(tmp_path)
    monkeypatch.setitem(SECTIONS, "speed", lambda report, run: report.note(f"original: {run.original}"))
    main(["--only", "speed", "--quick"])
    said = capsys.readouterr().out
    assert "note: the original is left out: node is not installed" in said
    assert "original: None" in said


def test_an_original_that_breaks_down_is_left_out_from_there_on(monkeypatch):
    seen = []

    def section(report, run):
        report.measured("x_us", [1.0], "us")
        seen.append(run.original)
        if run.original is not None:
            raise OriginalUnavailable("it crashed")
        report.measured("y_us", [1.0], "us")

    monkeypatch.setitem(SECTIONS, "speed", section)
    report, run = Report("test"), Run(TINY, original=object())
    measure(report, run, "speed")
    assert [row.id for row in report.rows] == ["x_us", "y_us"]
    assert seen[1] is run.original is None
    assert "it crashed" in report.notes[0]


def test_a_failed_installation_is_told(tmp_path, monkeypatch):
    program = tmp_path / "npm"
    program.write_text("#!/bin/sh\necho 'no such registry' >&2\nexit 1\n")
    program.chmod(0o755)
    (tmp_path / "node").write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(original.shutil, "which", lambda program: program)
    with pytest.raises(OriginalUnavailable, match=r"could not install @ruvector/sona 0\.1\.8: no such registry"):
        Original.start(tmp_path / "cache")
