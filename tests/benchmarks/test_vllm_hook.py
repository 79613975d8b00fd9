"""`benchmarks/vllm_hook.py` and `gpu_hook.py` without vLLM and without a GPU: clocks, rows, what ends a run."""

import itertools
import json
import types

import pytest
from report import Report
from vllm_env import VARIABLE, VllmUnavailable, vllm_python
from vllm_hook import inside_rows, interleaved, main, ratio_rows, serving_rows, stands
from vllm_hook_parts.timing import StepTimer, WorkerCpu


class Clock:
    """Work is the only thing that takes time."""

    now = 0.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(
        "vllm_hook_parts.timing.time", types.SimpleNamespace(perf_counter=found, process_time=found)
    )
    return found


def test_the_plug_ins_own_time_is_what_lies_between_the_clocks(clock):
    class Model:
        def compute_logits(self, hidden):
            clock.work(10.0)
            return hidden

    class Runner:
        model = Model()

        def execute_model(self, scheduler_output):
            clock.work(100.0)
            self.model.compute_logits(0)
            self.model.compute_logits(0)

        def _sample(self, logits):
            clock.work(5.0)

    def wrap(owner, name, before, after):
        inner = getattr(owner, name)

        def wrapped(*args):
            clock.work(before)
            out = inner(*args)
            clock.work(after)
            return out

        setattr(owner, name, wrapped)

    runner = Runner()
    timer = StepTimer(runner)
    timer.below()
    wrap(runner, "execute_model", 1.0, 0.5)
    wrap(runner.model, "compute_logits", 0.25, 0.25)
    wrap(runner, "_sample", 0.0, 2.0)
    timer.above()
    for counts in ({"a": 1, "b": 1}, {"a": 1, "b": 7}, {"a": 1}):  # the second reads a prompt
        runner.execute_model(types.SimpleNamespace(num_scheduled_tokens=counts))
        clock.work(1000.0)
        runner._sample(None)
    assert timer.take() == [(pytest.approx(129.5), pytest.approx(4.5))] * 2
    assert timer.take() == []


def test_the_workers_cpu_is_that_of_its_two_methods(clock):
    worker = types.SimpleNamespace(
        execute_model=lambda: clock.work(3.0), sample_tokens=lambda: clock.work(1.0), other=lambda: clock.work(9.0)
    )
    cpu = WorkerCpu(worker)
    for name in ("execute_model", "other", "sample_tokens"):
        getattr(worker, name)()
    assert (cpu.take(), cpu.take()) == (4.0, 0.0)


class FakeEngine:
    def __init__(self, name, told, **round_):
        self.name, self.told, self.round = name, told, round_

    def __call__(self, do, **arguments):
        self.told.append((self.name, do, arguments))
        if do == "lesson":
            return {"gradient_steps": 1.5, "again_steps": 0.5, "fetch_steps": 1.0, "step_ms": 80.0}
        return self.round


def test_rounds_alternate_and_a_slower_plug_in_misses_the_goal():
    told = []
    plain = FakeEngine("plain", told, cpu_us_per_token=100.0)
    plugged = FakeEngine("plugged", told, cpu_us_per_token=102.0)
    report = Report("test")
    ratio_rows(report, *interleaved(plain, plugged, rounds=9, tokens=4))
    (row,) = report.rows
    assert (row.id, row.n, row.ok) == ("tokens_per_s_ratio", 9, True)
    assert row.value == pytest.approx(100 / 102)
    order = [name for name, *_ in told]
    assert order[:6] == ["plugged", "plugged", "plain", "plain", "plugged", "plugged"]
    bound = [arguments for _, _, arguments in told if arguments.get("key")]
    assert all(arguments["capture"] for arguments in bound)
    assert len(bound) == 10
    plugged.round["cpu_us_per_token"] = 104.0
    report = Report("test")
    ratio_rows(report, *interleaved(plain, plugged, rounds=9, tokens=4))
    assert report.rows[0].ok is False


@pytest.mark.parametrize(("wrap_us", "ok"), [(109.0, True), (111.0, False)])
def test_rows_inside_the_engine(wrap_us, ok):
    plugged = FakeEngine("plugged", [], step_us=80_000.0, wrap_us=wrap_us, wrap_us_mean=wrap_us)
    report = Report("test")
    plain = FakeEngine("plain", [], step_us=80_000.0, wrap_us=10.0, wrap_us_mean=10.0)
    inside_rows(report, plain, plugged, rounds=9, tokens=4)
    rows = {row.id: row for row in report.rows}
    assert list(rows) == ["wrap_share_of_step", "wrap_us_8_bound", "gradient_steps_64_tokens"]
    assert rows["wrap_share_of_step"].value == pytest.approx((wrap_us - 10.0) / 80_000.0)
    assert rows["wrap_us_8_bound"].ok is ok
    assert rows["gradient_steps_64_tokens"].ok is True


def test_an_adapter_that_is_never_seen_is_no_success():
    def serving(effects, put=3.0):
        told = iter(effects)
        return types.SimpleNamespace(
            put_ms=lambda count: [put] * count,
            put_ms_while_streaming=lambda count: [60.0] * count,
            tokens_to_effect=lambda after: next(told),
        )

    for effects, value, ok in (
        ([1, 2, 2] * 4, 2.0, True),
        ([3, 1, 3] * 4, 3.0, False),
        ([1, None] * 5, None, False),
    ):
        report = Report("test")
        serving_rows(report, serving(itertools.cycle(effects)), rounds=9)
        put, effect = report.rows
        assert (put.id, put.value, put.ok) == ("adapter_put_ms", 3.0, True)
        assert (effect.id, effect.value, effect.ok) == ("time_to_effect_tokens", value, ok)
    report = Report("test")
    serving_rows(report, serving([1] * 9, put=5.1), rounds=9)
    assert report.rows[0].ok is False


def test_a_hook_that_gave_up_has_no_figures():
    stands({"disabled": "", "mismatch": 0})
    for name, value in (("disabled", "logits: RuntimeError"), ("mismatch", 1)):
        with pytest.raises(SystemExit, match=name):
            stands({"disabled": "", "mismatch": 0, name: value})


def test_fewer_than_nine_rounds_are_refused():
    with pytest.raises(SystemExit, match="9 rounds"):
        main(["--rounds", "8"])


def test_the_environment_that_the_variable_names_is_used_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(VllmUnavailable, match=VARIABLE):
        vllm_python()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert vllm_python() == tmp_path / "bin" / "python"


def test_gpu_hook_runs_its_lines_on_the_cpu(tmp_path):
    import gpu_hook

    out = tmp_path / "gpu.json"
    gpu_hook.main(["--cpu-smoke", "--json", str(out)])
    written = json.loads(out.read_text())
    assert "no figures" in written["benchmark"]
    ids = [row["id"] for row in written["rows"]]
    assert ids == [
        "wrap_us.d16.b1",
        "wrap_us.d16.b4",
        "lm_head_us.d16.v64.b1",
        "lm_head_us.d16.v64.b4",
        "gradient_ms.d16.v64",
    ]
    assert all(row["value"] > 0 and row["goal"] is None for row in written["rows"])


def test_gpu_hook_says_that_it_is_not_run_without_cuda(monkeypatch, capsys):
    import gpu_hook
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu_hook.main([])
    assert ended.value.code == 2
    assert "not run" in capsys.readouterr().out
