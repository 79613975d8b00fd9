"""`benchmarks/learning.py`: its arithmetic, its protocols against ideal and leaky memories."""

import asyncio
import dataclasses
import json
import signal
import subprocess
import sys
import types
import xml.etree.ElementTree as ET

import learning
import msgspec
import numpy as np
import pytest
from learning_parts import (
    answers,
    collapse,
    correcting,
    correction,
    original,
    plan,
    plots,
    profiles,
    reward,
    rewards,
    side_by_side,
    students,
)
from learning_parts.serving import Answer
from report import Report, Row
from served import stopped

from sona_stream.config.settings import CanarySettings, LearningSettings
from sona_stream.engine import SonaConfig
from sona_stream.engine.learner.watch import Watch
from sona_stream.events import Score, Trajectory

FAMILY = rewards.families()["concise"]


def answer(question, text, finish_reason="stop"):
    return Answer(question, text, finish_reason, "r", "none")


# ---- the entry


def test_a_report_of_numpy_figures_is_json():
    report = Report("b")
    for direction in ("<=", ">=", "=="):
        report.add(Row("r", np.float64(1.0), "x", (np.float64(0.5), 1.0), goal=1, direction=direction))
    assert [row["ok"] for row in json.loads(json.dumps(report.as_dict()))["rows"]] == [True] * 3


def test_what_was_measured_is_kept_until_the_code_changes(tmp_path, capsys):
    out, calls = tmp_path / "out.json", []

    def measure():
        calls.append(1)
        return {"value": (1, 2)}

    run = plan.Run(quick=True, out=out, code="one")
    assert run.kept("a.0", measure) == run.kept("a.0", measure) == {"value": [1, 2]}
    assert len(calls) == 1
    plan.Run(quick=True, out=out, code="two").kept("a.0", measure)
    plan.Run(quick=False, out=out, code="two").kept("a.0", measure)
    assert len(calls) == 3, "other code, other counts"
    assert plan.Run(code="two").kept("a.0", measure) == {"value": [1, 2]}
    assert len(calls) == 4, "nowhere to keep it"


def test_a_measurement_that_fails_leaves_nothing_behind(tmp_path):
    run = plan.Run(out=tmp_path / "out.json", code="one")
    with pytest.raises(ZeroDivisionError):
        run.kept("a", lambda: 1 / 0)
    assert run.kept("a", lambda: 1) == 1


def test_every_file_that_decides_is_in_the_digest(tmp_path, monkeypatch):
    assert plan.state_of_code() == plan.state_of_code()
    for name in ("sona_stream", "benchmarks/learning_data"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "benchmarks/learning_data/x.jsonl").write_text("{}")
    monkeypatch.setattr(plan, "ROOT", tmp_path)
    before = plan.state_of_code()
    (tmp_path / "benchmarks/learning_data/x.jsonl").write_text("{ }")
    assert plan.state_of_code() != before
    for name in ("benchmarks/guide_parts/rounds.py", "examples/served.py"):
        before = plan.state_of_code()
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("pass")
        assert plan.state_of_code() != before, name


def test_what_was_measured_under_other_circumstances_is_measured_again(tmp_path, monkeypatch):
    """The texts that there are, the contextual encoder, versions of libraries; not the number of threads."""
    calls, data = [], tmp_path / "data"
    (data / "stream_text").mkdir(parents=True)

    def measured(**given):
        before = len(calls)
        plan.Run(out=tmp_path / "out.json", code="one", **given).kept("a", lambda: calls.append(given))
        return len(calls) > before

    assert measured(data=data)
    assert not measured(data=data, threads=7)
    assert not measured(data=None), "a folder without texts is as good as none"
    text = data / "stream_text" / "wikitext2.jsonl.gz"
    for content in (b"1", b"22"):
        text.write_bytes(content)
        assert measured(data=data)
        assert not measured(data=data)
    assert measured(data=None)
    there = plan._reads_paraphrases()
    monkeypatch.setattr(plan, "_reads_paraphrases", lambda: not there)
    assert measured()
    monkeypatch.setattr(plan.metadata, "version", lambda library: "99" if library == "torch" else "1")
    assert measured()
    assert not measured()
    (kept,) = (tmp_path / "out.kept").iterdir()
    told = json.loads(kept.read_text())
    assert told["circumstances"]["libraries"]["torch"] == "99"
    del told["circumstances"]
    kept.write_text(json.dumps(told))
    assert measured(), "kept by a benchmark that did not say"


def test_the_command_runs_the_parts_that_are_named(tmp_path, monkeypatch):
    part = types.SimpleNamespace(add_rows=lambda report, run: report.measured("x", [float(len(run.seeds))], ""))
    monkeypatch.setattr(learning.importlib, "import_module", lambda name: part)
    out = tmp_path / "out.json"
    learning.main(["--only", "reward", "--json", str(out)])
    assert [(row["id"], row["value"]) for row in json.loads(out.read_text())["rows"]] == [("x", 5.0)]
    learning.main(["--only", "reward", "--quick", "--jobs", "1", "--json", str(out)])
    told = json.loads(out.read_text())
    assert told["rows"][0]["value"] == 1.0
    assert "quick" in told["benchmark"]


def test_a_quick_run_measures_times_alone_and_the_rest_side_by_side(tmp_path, monkeypatch, capsys):
    done = []

    def module(path):
        name = path.rpartition(".")[2]
        add_rows, add_costs = (lambda report, run, what=what: done.append(what) for what in (name, "costs"))
        return types.SimpleNamespace(add_rows=add_rows, add_costs=add_costs)

    monkeypatch.setattr(learning.importlib, "import_module", module)
    monkeypatch.setattr(side_by_side, "measure", lambda *asked: done.append(asked))
    named = ["streams", "learner_cost", "reward", "profiles"]
    asked = ["--quick", "--threads", "2", "--no-original", "--data", "texts", "--only", *named]
    learning.main([*asked, "--json", str(tmp_path / "out.json")])
    *first, (names, options, jobs) = done[:3]
    assert first == ["learner_cost", "costs"]
    assert names == ["reward", "profiles", "streams"], "the longest first"
    assert jobs == 2
    assert done[3:] == named
    child = learning.parser().parse_args([*options, "--only", "reward"])
    assert (child.quick, child.threads, child.jobs, str(child.data)) == (True, 1, 1, "texts")
    assert child.kept == plan.Run(out=tmp_path / "out.json").folder
    done.clear()
    learning.main(asked)
    assert learning.parser().parse_args(done[2][1]).kept != child.kept, "a folder that goes away"
    done.clear()
    learning.main([*asked[1:], "--json", str(tmp_path / "out.json")])
    assert done == named, "a full run takes one part after the other"


def test_what_a_process_of_its_own_measured_is_found(tmp_path, capsys):
    out = tmp_path / "out.json"
    assert plan.Run(keeps=plan.Run(out=out).folder, code="one").kept("a", lambda: 1) == 1
    assert plan.Run(out=out, code="one").kept("a", lambda: 2) == 1
    kept = json.loads((tmp_path / "out.kept" / "a.json").read_text())
    assert kept["seconds"] >= 0 <= kept["cpu_seconds"]


def test_parts_that_fail_are_named_when_all_have_ended(monkeypatch):
    ran = []

    def run(options):
        ran.append(options)
        return int(options[-1] == "reward")

    monkeypatch.setattr(side_by_side, "_run", run)
    with pytest.raises(SystemExit, match="not measured: reward;"):
        side_by_side.measure(["reward", "streams"], ["--quick"], 2)
    assert sorted(ran) == [["--quick", "--only", "reward"], ["--quick", "--only", "streams"]]
    side_by_side.measure(["streams"], [], 2)
    assert {*side_by_side.ORDER} <= {*learning.PARTS}
    assert {*side_by_side.ORDER, *learning.TIMED} == {*learning.PARTS}


def test_profiles_are_timed_with_pairs_of_their_whole_rank(monkeypatch):
    engines = {}
    monkeypatch.setattr(profiles, "_block", lambda engine, inputs: engine)
    monkeypatch.setattr(profiles, "interleave", lambda blocks, **_: engines.update(blocks) or {})
    monkeypatch.setattr(profiles, "DIM", 96)
    profiles._costs(1)
    for name, engine in engines.items():
        X = np.random.default_rng(7).standard_normal((64, 96), dtype=np.float32)
        pairs = {"base": engine.apply_base_lora(0, X) - X, "micro": engine.apply_micro_lora(X) - X}
        ranks = {pair: int(np.linalg.matrix_rank(delta, tol=1e-4)) for pair, delta in pairs.items()}
        config = getattr(SonaConfig, name)(96)
        assert ranks == {"base": config.base_lora_rank, "micro": config.micro_lora_rank}


def test_a_quick_run_has_the_ids_of_a_full_one(monkeypatch, capsys):
    def measured(arm, run, judge):
        text = "1. You sit down first.\n2. Your tea is number {}.\n3. You win it all."
        said = [answer(prompt, text.format(i)) for i, prompt in enumerate(arm.family.unseen)]
        told = [dataclasses.asdict(one) for one in said[: arm.unseen] for _ in range(arm.samples)]
        points = {str(n): {"reward": 0.5, "kl": 0.1, "ppl": 9.0} for n in (0, *arm.feedbacks)}
        unrelated = {"without": 9.0, "with": 9.0, "forced": 9.9, "left_alone": 3, "texts": 4}
        return {"before": told, "after": told, "control": told, "points": points, "unrelated": unrelated}

    monkeypatch.setattr(answers, "RESAMPLES", 10)
    monkeypatch.setattr(reward, "noise", lambda one, other: 1.0)
    monkeypatch.setattr(profiles, "_costs", lambda rounds: dict.fromkeys(profiles.PROFILES, [1e-6] * rounds))
    ids = []
    for quick in (True, False):
        report = Report("test")
        for part in (reward, collapse, profiles):
            monkeypatch.setattr(part, "measure", measured)
            part.add_rows(report, plan.Run(quick=quick))
        ids.append([row.id for row in report.rows])
        assert {row.id for row in report.rows if row.value is None} <= {
            *(f"reward_by_feedbacks.{name}.{n}" for name in rewards.FAMILIES for n in reward.CHECKPOINTS[2:]),
            *(f"frontier.anchor.{anchor:g}" for anchor in reward.ANCHORS),
        }
    assert ids[0] == ids[1]
    assert any("stands in for wikitext2" in note for note in report.notes)
    assert {f"{row}.{name}" for row in ("reward_gain", "distinct2") for name in rewards.FAMILIES} <= set(ids[0])
    assert {
        "unrelated_ppl",
        "unrelated_forced",
        "collapse_stopped",
        "profile.edge.gain",
        "profile.edge.us_per_token",
    } <= set(ids[0])


# ---- sets of answers


def test_rewards_by_prompt_follow_the_family_and_noise_is_two_standard_errors():
    good, bad = "The sky is blue because air scatters blue light most.", "Air."
    first, second = FAMILY.unseen[:2]
    found = answers.by_prompt([answer(second, bad), answer(first, good), answer(second, good)], FAMILY)
    assert list(found) == [1.0, 0.5]
    one, other = np.zeros(4), np.array([0.0, 1.0, 0.0, 1.0])
    assert answers.noise(one, other) == pytest.approx(2 * np.std(other, ddof=1) / 2)


def test_the_bootstrap_covers_the_mean_and_is_repeatable(monkeypatch):
    monkeypatch.setattr(answers, "RESAMPLES", 400)
    drawn = np.random.default_rng(0).normal(0.3, 0.1, (5, 32))
    low, high = answers.bootstrap(drawn)
    assert 0.2 < low < drawn.mean() < high < 0.4
    assert answers.bootstrap(drawn) == (low, high)


def test_distinct_pairs_are_compared_over_equally_many():
    varied = [answer("q", f"word{i} and thing{i} of kind{i}") for i in range(40)]
    same = [answer("q", "and and and and and")] * 10
    assert answers.distinct2_ratio(varied, varied[:5]) == pytest.approx(1.0)
    assert answers.distinct2_ratio(varied, same) < 0.1
    assert answers.distinct2_ratio(varied, [answer("q", "one")]) == 0.0


def test_samples_that_are_alike_cost_nothing_with_one_answer_a_prompt():
    def said(again):
        return [
            answer(f"q{i}", " ".join(f"w{i}.{n}.{k * again}" for n in range(20)))
            for i in range(6)
            for k in range(4)
        ]

    assert answers.distinct2_ratio(said(1), said(0)) == pytest.approx(0.25)
    assert answers.one_a_prompt(said(1), said(0)) == pytest.approx(1.0)


def test_what_is_on_topic_is_nearer():
    near = [answer("How do bees make honey?", "Bees make honey from the nectar of flowers.")]
    far = [answer("How do bees make honey?", "The stock market closed lower on Friday.")]
    assert answers.relevance(near) > answers.relevance(far)


def test_a_plot_is_a_picture_with_every_point():
    drawn = plots.curves("A & B", "x", "y", {"one": [(0, 0.1), (25, -3)], "two <": [(400, 55)]})
    root = ET.fromstring(drawn)
    marks = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(marks) == 3
    assert all(0 <= float(e.get("cx")) <= 640 and 0 <= float(e.get("cy")) <= 400 for e in marks)
    assert ET.fromstring(plots.curves("empty", "x", "y", {})) is not None


def test_avoiding_the_word():
    assert collapse.without_the("and and and", "stop") == 1.0
    assert collapse.without_the("the cat and its two kittens sleep here", "stop") == 0.0
    one_of_sixteen = '"The" end, so to say, of all good stories here, my dear friends, is very near'
    assert collapse.without_the(one_of_sixteen, "stop") == 0.5
    assert collapse.without_the("the", "stop") == collapse.without_the("and", "stop") == 0.0
    assert collapse.GATES_OFF["anchor"] == 0


def test_with_gates_off_nothing_is_taken_back():
    """A thousand answers that are loops and rated 0, after a hundred good ones."""
    off = msgspec.convert({**collapse.GATES_OFF}, LearningSettings)
    assert off.familiar == 0
    found = []
    for canary in (CanarySettings(), off.canary):
        watch = Watch(canary)
        for version, ids, quality, count in ((0, range(30), 1.0, 100), (1, [7] * 30, 0.0, 1000)):
            for number in range(count):
                shown = [number * 100 + i for i in ids] if version == 0 else list(ids)
                watch.answered(version, answered_with(shown, quality))
                watch.rated(version, quality)
        found.append(watch.finding())
    assert found[0] is not None
    assert found[1] is None


def answered_with(token_ids, score):
    return Trajectory(request_id="r", tenant="t", key_id="k", score=Score(value=score), token_ids=tuple(token_ids))


def collapse_row(kl, adapter, monkeypatch):
    def measured(arm, run, judge):
        varied = [
            answer(prompt, f"Answer {i} is like none of {i * i}.") for i, prompt in enumerate(arm.family.unseen)
        ]
        loops = [answer(prompt, "and " * 30) for prompt in arm.family.unseen]
        after = loops if arm.name == "gates off" else [dataclasses.replace(one, adapter=adapter) for one in varied]
        points = {"0": {"reward": 0.5, "kl": 0.0}, str(arm.full): {"reward": 0.5, "kl": kl}}
        plain = [[dataclasses.asdict(one) for one in part] for part in (varied, after)]
        return {"before": plain[0], "after": plain[1], "points": points}

    monkeypatch.setattr(collapse, "measure", measured)
    report = Report("test")
    collapse.add_rows(report, plan.Run())
    return report.rows[-1]


def test_what_stopped_a_collapse_by_serving_nothing_says_so(monkeypatch):
    held = collapse_row(0.0, "none", monkeypatch)
    assert (held.value, held.compared["kept back, on"], held.compared["served, %, on"]) == (1.0, 5, 0.0)
    assert "nothing of the adapter was served" in held.compared["remark"]
    served = collapse_row(0.2, "m/t/*@3", monkeypatch)
    assert (served.value, served.compared["kept back, on"], served.compared["kl, on"]) == (1.0, 0, 0.2)
    assert "remark" not in served.compared


# ---- students


class FakeStudent(students.Student):
    """Says what it was asked, and writes down what it is told."""

    def __init__(self, seed):
        super().__init__("http://127.0.0.1:1", "key", FAMILY, seed)
        self.asked, self.told = [], []

    async def ask(self, prompt, seed):
        self.asked.append(prompt)
        words = 2 + len(self.asked) % 7
        return dataclasses.replace(answer(prompt, "word " * (words - 1) + "end."), request_id=str(seed))

    async def feedback(self, request_id, **judgement):
        self.told.append((request_id, judgement["value"]))


async def test_a_control_hears_the_same_rewards_in_another_order():
    async with FakeStudent(3) as student, FakeStudent(3) as placebo:
        for until in (25, 40):
            await student.teach(until)
            await placebo.teach(until, permuted=True)
    assert student.asked == placebo.asked
    assert len(student.told) == len(placebo.told) == 40
    assert sorted(value for _, value in student.told) == sorted(value for _, value in placebo.told)
    assert dict(student.told) != dict(placebo.told)
    assert len({name for name, _ in placebo.told}) == 40


async def test_every_training_prompt_comes_before_one_comes_again():
    count = len(FAMILY.train)
    async with FakeStudent(1) as one, FakeStudent(2) as other:
        await asyncio.gather(one.teach(count + 5), other.teach(count))
    assert set(one.asked[:count]) == set(FAMILY.train)
    assert one.asked[:count] != other.asked


def test_a_server_that_does_not_end_is_ended():
    deaf = "from signal import *; signal(SIGTERM, SIG_IGN); print('hears nothing', flush=True); pause()"
    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "hears nothing\n"
        stopped(server, patience_s=0.2)
    assert server.returncode == -signal.SIGKILL


# ---- one correction


class Memory:
    """A server whose memory acts on the prompts that ``hits`` says. Corrections belong to a key."""

    recognises = "paraphrases"

    def __init__(self, hits):
        self.hits, self.stored, self.last = hits, [], {}

    def client(self, url, key):
        return MemoryClient(self, key)


class MemoryClient:
    def __init__(self, memory, key):
        self.memory, self.key = memory, key

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        pass

    async def chat(self, messages, max_tokens, **options):
        said, name = " | ".join(turn["content"] for turn in messages), str(len(self.memory.last))
        self.memory.last[name] = said
        own = [(p, text) for key, p, text in self.memory.stored if key == self.key]
        hit = next((text for prompt, text in reversed(own) if self.memory.hits(prompt, said)), None)
        text = hit or f"The model says something about {said}."[: 4 * max_tokens]
        return Answer(said, text, "stop", name, "none", "" if hit is None else "key")

    async def feedback(self, request_id, correction):
        self.memory.stored.append((self.key, self.memory.last[request_id], correction))

    async def post(self, path, body=None):
        if path == "/v1/feedback/undo":
            at = max(i for i, (key, _, _) in enumerate(self.memory.stored) if key == self.key)
            del self.memory.stored[at]
        else:
            assert path == "/v1/sona/freeze"

    async def get(self, path):
        if path == "/v1/sona/stats":
            return {"memory": {"recognises": self.memory.recognises, "episodes": len(self.memory.stored)}}
        assert path.startswith("/v1/sona/memory?limit=")
        newest = {(key, prompt): at for at, (key, prompt, _) in enumerate(self.memory.stored)}
        return {"data": [{"used": at in newest.values()} for at in range(len(self.memory.stored))]}


MEANT = {
    row["prompt"]: {row["prompt"], *row["paraphrases"], *row["situations"]}
    for row in correcting.lines("corrections")
}
for row in correcting.lines("long_answers"):
    MEANT[row["prompt"]] = {row["prompt"], *row["paraphrases"]}
for row in correcting.lines("multi_turn"):
    said, again = (" | ".join(turn["content"] for turn in row[part]) for part in ("messages", "reworded"))
    MEANT[said] = {said, again}


FEW = correcting.Counts(each=2, stored=40, warm_samples=1)


def shares(hits, monkeypatch, counts=FEW):
    return {name: row.value for name, row in protocol_rows(Memory(hits), monkeypatch, counts).items()}


def protocol_rows(memory, monkeypatch, counts=FEW):
    monkeypatch.setattr(correcting, "Client", memory.client)
    server = types.SimpleNamespace(base_url="", keys={"a": "a", "b": "b", "operator": "operator"})
    told = json.loads(json.dumps(correcting.Protocol(server, counts).go()))
    report = Report("test")
    correction.rows(report, told)
    return {row.id.removeprefix("correction."): row for row in report.rows}


def test_an_ideal_memory_gets_everything(monkeypatch, capsys):
    found = shares(lambda prompt, asked: asked in MEANT.get(prompt, {prompt}), monkeypatch)
    assert {name: value for name, value in found.items() if value not in (100, None)} == {}
    assert set(found) == set(correction.GOALS)


def test_a_quick_protocol_gives_every_row_of_the_report_half(monkeypatch, capsys):
    ideal = lambda prompt, asked: asked in MEANT.get(prompt, {prompt})  # noqa: E731
    found = shares(ideal, monkeypatch, correcting.Counts.quick())
    assert set(found) == set(shares(ideal, monkeypatch))
    assert set(found.values()) == {100}


def test_a_memory_that_acts_on_everything_keeps_nothing(monkeypatch, capsys):
    found = shares(lambda prompt, asked: True, monkeypatch)
    assert found["next"] == 100
    assert max(found[f"{name}_kept"] for name in ("same_form", "unrelated", "near_miss")) == 0
    assert found["moved"] <= 50
    assert found["undo_exact"] == 0, "what acts then is another correction"
    assert found["undo_restores"] == 100, "and so it did before"
    assert found["other_user_kept"] == 100


class Deaf(MemoryClient):
    async def post(self, path, body=None):
        """Undoes nothing."""


class Mute(MemoryClient):
    """Says nothing to B once there is a crowd."""

    async def chat(self, messages, max_tokens, **options):
        said = await super().chat(messages, max_tokens, **options)
        crowded = self.key == "b" and len(self.memory.stored) > 20
        return dataclasses.replace(said, text="") if crowded else said


def with_clients(kind):
    ideal = lambda prompt, asked: asked in MEANT.get(prompt, {prompt})  # noqa: E731
    memory = Memory(ideal)
    memory.client = lambda url, key: kind(memory, key)
    return memory


def test_an_undo_that_does_nothing_restores_nothing(monkeypatch, capsys):
    found = protocol_rows(with_clients(Deaf), monkeypatch)
    assert found["undo_restores"].value == found["undo_exact"].value == 0
    assert found["undo_restores"].ok is False


def test_an_empty_answer_is_not_the_old_one(monkeypatch, capsys):
    assert protocol_rows(with_clients(Mute), monkeypatch)["other_user_kept"].value < 60


def test_a_crowd_is_as_many_as_act(monkeypatch, capsys):
    row = protocol_rows(with_clients(MemoryClient), monkeypatch)["other_user_kept"]
    assert row.ok
    assert row.compared["in use"] == 40
    assert row.compared["stored"] >= 40
    texts = correcting.Protocol._crowded
    monkeypatch.setattr(correcting.Protocol, "_crowded", lambda self: texts(self)[:5])
    row = protocol_rows(with_clients(MemoryClient), monkeypatch)["other_user_kept"]
    assert (row.value, row.ok) == (100, False), "too few were in use"
    assert row.compared["in use"] < 40


def test_a_server_that_tells_no_paraphrases_gives_rows_without_values(monkeypatch, capsys):
    memory = with_clients(MemoryClient)
    memory.recognises = "nearly the same words only"
    found = protocol_rows(memory, monkeypatch)
    assert memory.stored == []
    assert set(found) == set(correction.GOALS)
    assert {row.value for row in found.values()} == {None}
    assert {name for name, row in found.items() if row.ok is False} == {
        name for name, goal in correction.GOALS.items() if goal is not None
    }


def test_no_memory_moves_nothing_and_spoils_nothing(monkeypatch, capsys):
    found = shares(lambda prompt, asked: False, monkeypatch)
    assert found["moved"] == found["next"] == found["paraphrase"] == 0
    assert found["near_miss_kept"] == found["undo_exact"] == found["other_user_kept"] == 100


# ---- against the original


def test_the_tasks_without_a_model_are_repeatable():
    one = original.direction(3, dim=16, trajectories=60, inputs=10)
    assert one == original.direction(3, dim=16, trajectories=60, inputs=10)
    assert 0 <= one["towards"] <= 1
    gained = original.regression(3, trajectories=300, unseen=20, steps=4, shuffled=False)
    control = original.regression(3, trajectories=300, unseen=20, steps=4, shuffled=True)
    assert gained["before"] == control["before"]
    assert gained["after"] - gained["before"] > control["after"] - control["before"]
    told = original.ewc(3, strength=0, cycles=2, each=5, unseen=5)
    assert set(told) == {"learned", "forgotten", "relearned", "tasks", "outputs"}


def test_rows_against_a_partner_that_does_nothing(monkeypatch, capsys):
    class Idle:
        def ask(self, op, **options):
            if op == "direction":
                return {"towards": 0.48}
            if op == "regression":
                return {"before": 0.1, "after": 0.1 + 1e-6 * options["lr"], "improved": 0.5}
            return {"learned": 0.0, "forgotten": 0.0, "relearned": 0.0, "tasks": 0, "outputs": "same"}

    for name in ("direction", "regression", "ewc"):
        fake = lambda seed, name=name, **options: Idle().ask(name, lr=1.0, **options)  # noqa: E731
        fake.__name__ = name
        monkeypatch.setattr(original, name, fake)
    report = Report("test")
    original.add_rows(report, plan.Run(quick=True, original=Idle()))
    rows = {row.id: row for row in report.rows}
    assert set(rows) == {
        f"original.{what}.{who}" for what in ("direction", "regression", "ewc") for who in ("ours", "theirs")
    }
    assert rows["original.direction.theirs"].value == 0
    assert rows["original.regression.theirs"].compared["rate"] == 500
    assert rows["original.ewc.theirs"].value == 1.0
    assert rows["original.direction.ours"].ok is False
    assert rows["original.direction.theirs"].compared["rate"] == original.DIRECTION_RATE


def ewc_row(forgotten, relearned, goal=0.5):
    """(without, with) of one seed."""
    without, held = (
        {"learned": 0.8, "forgotten": f, "relearned": r, "tasks": 1, "outputs": f"{i}"}
        for i, (f, r) in enumerate(zip(forgotten, relearned, strict=True))
    )
    return original._held("id", [(without, held)], goal)


def test_who_is_held_too_fast_to_learn_again_misses_the_goal():
    good = ewc_row((0.4, 0.02), (0.7, 0.65))
    assert good.ok
    assert good.value == pytest.approx(0.05)
    assert good.compared["relearned with, at least"] == pytest.approx(0.56)
    assert ewc_row((0.4, 0.02), (0.7, 0.5)).ok is False
    assert ewc_row((0.4, 0.02), (0.0, 0.0)).ok is False
    assert ewc_row((0.4, 0.3), (0.7, 0.7)).ok is False
    assert ewc_row((0.4, 0.02), (0.7, 0.5), goal=None).ok is None


@pytest.mark.parametrize("forgotten", [(0.0, 0.02), (-0.1, 0.02), (-0.1, -0.2)])
def test_of_what_was_never_forgotten_there_is_no_share(forgotten):
    row = ewc_row(forgotten, (0.7, 0.7))
    assert (row.value, row.ok, row.compared["seeds without a share"]) == (None, False, 1)
