"""The one format: what a row says of its goal, what the JSON holds, when `--check` fails."""

import argparse
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report import Report, Row, add_arguments, finish


def arguments(*given_arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(argument) for argument in given_arguments])


@pytest.mark.parametrize(
    ("direction", "value", "ok"),
    [
        ("<=", 1.0, True),
        ("<=", 2.0, True),
        ("<=", 2.1, False),
        (">=", 2.0, True),
        (">=", 1.9, False),
        ("==", 2.0, True),
        ("==", 1.0, False),
        ("<=", None, False),
        (">=", None, False),
        ("<=", math.nan, False),
        (">=", math.nan, False),
    ],
)
def test_ok_is_the_goal_in_its_direction_and_the_unmeasured_misses_it(direction, value, ok):
    assert Row("id", value, "us", goal=2.0, direction=direction).ok is ok


@pytest.mark.parametrize(
    ("goal", "also", "ok"),
    [(2.0, True, True), (2.0, False, False), (0.5, True, False), (None, False, False), (None, True, True)],
)
def test_what_ok_needs_besides_the_goal(goal, also, ok):
    assert Row("id", 1.0, "us", goal=goal, also=also).ok is ok
    assert Row("id", None, "us", goal=2.0, also=also).ok is False


def test_without_a_goal_there_is_nothing_to_miss():
    assert Row("id", None, "us").ok is None


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20))
def test_measured_is_the_median_within_its_spread(samples):
    row = Report("test").measured("id", samples, "us")
    low, high = row.spread
    assert low == min(samples) <= row.value <= max(samples) == high
    below, above = sum(s <= row.value for s in samples), sum(s >= row.value for s in samples)
    assert min(below, above) >= len(samples) / 2
    assert row.n == len(samples)


def test_json_holds_the_format_and_the_table_the_same_rows(tmp_path, capsys):
    report = Report("test")
    report.measured("fast", [1.0, 2.0, 3.0], "us", goal=2.5, compared={"guide": 5.0, "remark": "so it is"})
    report.add(Row("unknown", None, "MB", compared={"guide": None}))
    report.note("something is missing")
    out = tmp_path / "new" / "out.json"
    finish(report, arguments("--json", out, "--check"))
    written = json.loads(out.read_text())
    assert set(written) == {"benchmark", "commit", "machine", "rows"}
    assert written["rows"][0] == {
        "id": "fast",
        "value": 2.0,
        "unit": "us",
        "spread": [1.0, 3.0],
        "n": 3,
        "compared": {"guide": 5.0, "remark": "so it is"},
        "goal": 2.5,
        "ok": True,
    }
    assert written["rows"][1]["ok"] is None
    assert written["rows"][1]["spread"] is None
    table = capsys.readouterr().out
    assert all(text in table for text in ("fast", "unknown", "guide=5", "so it is", "note: something is missing"))


def test_check_exits_naming_the_rows_that_miss_and_only_with_check(capsys):
    report = Report("test")
    report.add(Row("good", 1.0, "us", goal=2.0))
    report.add(Row("bad", 3.0, "us", goal=2.0))
    report.add(Row("unmeasured", None, "us", goal=2.0))
    finish(report, arguments())
    with pytest.raises(SystemExit) as stop:
        finish(report, arguments("--check"))
    assert stop.value.code == "goal missed: bad, unmeasured"  # a text is exit code 1
    assert "NO" in capsys.readouterr().out
