"""Every example runs as its user runs it, in its own process with warnings as errors, and says what it should."""

import re
from pathlib import Path

import httpx
import pytest
from program import run_python

EXAMPLES = Path(__file__).parents[2] / "examples"
MODULES = {"installed", "language_model", "served"}
"""not examples themselves"""
ELSEWHERE = {"live_adaptation", "per_layer", "vllm_in_process"}
"""tested with the real model, beside what they show, and inside vLLM"""


def run_example(name, *arguments, forked=False, **environment):
    environment = {"PYTHONHASHSEED": "0", "PYTHONWARNINGS": "error", **environment}
    ran = run_python(str(EXAMPLES / f"{name}.py"), *arguments, forked=forked, **environment)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def test_pattern_routing_sends_each_query_to_the_specialist_of_its_pattern():
    said = run_example("pattern_routing")
    routes = dict(re.findall(r"^(.*?)\s+-> (\S+)", said, re.M))
    assert routes == {
        "Write a Python function that sorts a list of strings": "code-specialized-model",
        "A shop sells 5 pens for $4. How much do 20 pens cost?": "cot-model",
        "Write a poem about the moon and the sea": "creative-model",
        "What is the capital of New Zealand?": "general-model",
        "Translate this contract clause into French": "default-model",
        "qwertyuiop": "default-model",
    }


def test_continuous_loop_learns_what_carries_over_to_new_topics_and_its_control_does_not():
    said = run_example("continuous_loop")
    above = [
        tuple(map(float, pair)) for pair in re.findall(r"feedback: above ([\d.]+).*control: above ([\d.]+)", said)
    ]
    assert above[0] == (0.0, 0.0)
    assert above[-1][0] >= 0.9
    assert above[-1][0] - above[-1][1] >= 0.3
    assert said.count("Forced learning: 40 trajectories") == 4


def test_quick_start_moves_towards_the_liked_answer():
    said = run_example("quick_start")
    numbers = re.findall(r"([+-][\d.]+) -> ([+-][\d.]+)", said)
    liked, disliked = [float(after) - float(before) for before, after in numbers]
    assert liked > 0
    assert liked > disliked
    assert "Pattern" in said
    assert "size=50" in said


def test_monitoring_learns_whenever_it_is_due_and_loses_nothing():
    said = run_example("monitoring")
    assert len(re.findall(r"request \d+: 81 buffered", said)) == 3
    assert re.search(r"trajectories_recorded: 250\b", said)
    assert re.search(r"trajectories_dropped: 0\b", said)
    assert "unchanged: True" in said


def test_own_scorer_has_its_share_in_the_quality():
    said = run_example("own_scorer")
    lines = said.splitlines()
    assert len(lines) == 3
    assert all("brevity" in line and "emptiness" in line for line in lines)
    qualities = [float(line.split(" = ")[0]) for line in lines]
    assert qualities == sorted(qualities, reverse=True)
    assert qualities[0] == 1.0
    assert qualities[1] < 1.0


def test_own_backend_answers_behind_the_real_server():
    assert "mirror says: stream and say these words" in run_example("own_backend")


def test_own_backend_refuses_what_it_has_not_by_the_fields_name(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from installed import installed
    from own_backend import CONFIG
    from served import served

    package = installed("sona_stream.backends", "reversing", "own_backend:create_backend")
    with package as folder, served(CONFIG, folder) as url:
        said = {"model": "mirror", "messages": [{"role": "user", "content": "a b"}], "n": 10**9}
        refused = httpx.post(f"{url}/v1/chat/completions", json=said)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")
        assert httpx.post(f"{url}/v1/embeddings", json={"model": "mirror", "input": "a"}).status_code == 404


@pytest.mark.parametrize(("name", "forked"), [("basic_enhancement", False), ("adaptive_llm", True)])
def test_a_model_is_enhanced_layer_by_layer(name, forked, tmp_path):
    pytest.importorskip("transformers")
    # An empty cache: the tiny random model.
    said = run_example(name, "--tokens", "4", forked=forked, SONA_STREAM_CACHE=str(tmp_path))
    assert len(re.findall(r"quality (0\.\d+|1\.00)", said)) >= 2


def test_every_example_is_tested_and_short():
    names = {path.stem for path in EXAMPLES.glob("*.py")} - MODULES - ELSEWHERE
    source = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in names if f'"{name}"' not in source} == set()
    for name in names:
        assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 80, name
