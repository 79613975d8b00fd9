"""The README says nothing that does not run: its commands, its client, its configuration, its feedback call."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
from pathlib import Path

import httpx
import pytest
from program import command

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
INSIDE_VLLM = (ROOT / "adapters/sona_stream_adapters/vllm_plugin/README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
BASH = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
YAML = re.findall(r"```yaml\n(.*?)```", README + INSIDE_VLLM, re.DOTALL)


@pytest.mark.model
def test_the_client_of_the_readme_streams_and_the_feedback_call_answers(default_server):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(PYTHON[0].replace("http://127.0.0.1:8080", default_server.url), {})
    assert "Paris" in printed.getvalue()

    body = {"messages": [{"role": "user", "content": "Name a colour."}], "model": "sona/auto", "max_tokens": 8}
    answer = httpx.post(f"{default_server.url}/v1/chat/completions", json=body, timeout=60)
    (curl,) = [block for block in BASH if block.startswith("curl")]
    call = curl.replace("http://127.0.0.1:8080", default_server.url)
    call = call.replace("<x-sona-request-id>", answer.headers["x-sona-request-id"]).replace("curl", "curl -s", 1)
    said = json.loads(subprocess.run(["bash", "-c", call], capture_output=True, check=True).stdout)
    assert said["status"] in ("published", "gated", "accepted")


@pytest.mark.model
def test_feedback_changes_the_next_answer(default_server):
    client = default_server.client(model="sona/auto")
    name, said, bare = "What is your name?", "Ahoy, captain! My name is Polly.", {"x-sona-adapt": "off"}
    unadapted = client.ask(name, max_tokens=24, headers=bare)
    before = client.ask(name, max_tokens=24)
    assert before.status == 200
    assert "remembered" in client.teach(before, correction=said)["reason"]
    after = client.ask(name, max_tokens=24)
    assert after.text == said != before.text
    assert after.headers["x-sona-episodes"]
    assert client.ask(name, max_tokens=24, headers=bare).text == unadapted.text
    assert "Paris" in client.ask("What is the capital of France?").text
    versions = []
    for _ in range(12):  # a rating is no memory: it moves the adapter
        outcome = client.teach(client.ask("Name a colour.", max_tokens=24), rating=-1)
        versions.append((outcome["status"], outcome["adapter"], outcome["reason"]))
        if outcome["status"] == "published":
            break
    assert client.ask(name, max_tokens=24).adapter.startswith("smollm2-135m-instruct/default/*@"), versions
    assert client.http.post("/v1/feedback/undo", json={}).json()["kind"] == "rating"
    assert client.ask(name, max_tokens=24).text == said
    assert client.http.post("/v1/feedback/undo", json={"request_id": before.request_id}).status_code == 200
    assert client.ask(name, max_tokens=24).text != said


def test_the_configuration_of_the_readme_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from sona_stream.config.load import read_settings

    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    monkeypatch.setenv("SONA_VLLM_KEY", "k" * 24)
    for number, text in enumerate(YAML):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        settings, warnings = read_settings(file)
        assert settings.models
        assert warnings == []
    assert YAML


def test_every_command_that_the_readme_names_exists():
    (line,) = re.findall(r"## Commands\n\n(.*?)\n\n", README, re.DOTALL)
    for named in re.findall(r"`([^`]+)`", line):
        words = named.replace('"query"', "").split()
        if words == ["--help"]:
            continue
        for last in words[-1].split("|"):
            run = command(*words[:-1], last, "--help")
            assert run.returncode == 0, (named, run.stderr)


def test_ci_runs_the_tests_with_the_readmes_command():
    ci = (Path(__file__).parents[2] / ".ci" / "run").read_text()
    (tests,) = [block for block in BASH if "pytest" in block]
    for part in tests.strip().split(" && "):
        assert part.replace("pip install ", "") in ci


def test_the_settings_inside_vllm_are_those_of_the_table():
    from sona_stream_adapters.vllm_plugin.settings import MIB, PluginSettings

    told = dict(re.findall(r"^\| `SONA_VLLM_(\w+)` \| ([\d.]+) \|", INSIDE_VLLM, re.MULTILINE))
    default = PluginSettings()
    assert {name: float(value) for name, value in told.items()} == {
        "ADAPTER_MB": default.adapter_bytes / MIB,
        "MAX_RANK": default.max_rank,
        "MAX_DELTA": default.max_delta,
        "CAPTURE_MB": default.capture_bytes / MIB,
        "RING_TOKENS": default.ring_tokens,
        "EPISODE_SHARE": default.episode_share,
        "EPISODE_THRESHOLD": default.episode_threshold,
        "GRADIENT_TOKENS": default.gradient_tokens,
        "EPISODE_MB": default.episode_bytes / MIB,
    }
