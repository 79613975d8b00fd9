"""A real, tiny model that is taught to repeat itself: the server notices by itself and goes back."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner
from program import QUICK, until, write_config

from sona_stream.cli import main

LOOP = "the the the the the the the the the the the the"


def run(*arguments, code=0):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output


def test_answers_that_loop_take_their_version_back(serve, tiny_folder, tmp_path):
    learner = {**QUICK["learner"], "least_trust": 1.0, "step_kl": 0.2}
    config = write_config(tmp_path / "c.yaml", tiny_folder, {**QUICK, "learner": learner})
    program = serve("--config", str(config))
    client = program.client()
    fields = {"max_tokens": 24, "temperature": 0.1}
    for i in range(32):
        bare = client.ask(f"question {i}", **fields)
    assert bare.adapter == "none"
    for i in range(32):
        client.teach(client.ask(f"lesson {i}", max_tokens=4), correction=LOOP)
    key = client.ask(max_tokens=1).adapter.rpartition("@")[0]
    taught = client.ask("question", **fields)
    assert taught.text.count("the") > 6, taught.text
    for i in range(100):
        if client.ask(f"again {i}", **fields).adapter == "none":
            break
    until(lambda: client.ask(max_tokens=1).adapter == "none")
    gates = until(lambda: client.get("/v1/sona/stats")["learner"]["gates"].get(key))
    assert gates["degenerate_answers"] == 1
    assert "back to version 0" in gates["last"]
    assert client.metric('sona_gated_versions_total{gate="degenerate_answers",tenant="default"}') == 1.0
    rows = client.get("/v1/sona/adapters")["data"]
    assert {row["status"] for row in rows} == {"rolled_back"}
    assert (
        client.ask("question", **{**fields, "seed": 1}).text
        == client.ask("question", headers={"x-sona-adapt": "off"}, **{**fields, "seed": 1}).text
    )


@pytest.fixture
def taught(tenant):
    answer = tenant.ask()
    for text in ("the lazy dog", "the quick fox", "the lazy dog"):
        adapter = tenant.teach(answer, correction=text)["adapter"]
    return tenant, adapter.rpartition("@")[0]


def test_versions_are_shown_and_compared(shared, taught, monkeypatch):
    tenant, key = taught
    monkeypatch.setenv("SONA_API_KEY", "gateway")
    server = ("--base-url", shared.url)
    shown = run("adapters", "show", f"{key}@2", *server)
    assert re.search(r"^version: +2$", shown, re.M)
    assert re.search(r"^  mean_kl_to_base: +\d", shown, re.M)
    assert re.search(r"^served: +True$", run("adapters", "show", key, *server), re.M)
    told = run("adapters", "diff", key, "1", "3", *server)
    for name in ("norms", "cosine", "kl", "hidden_state_difference"):
        assert re.search(rf"^{name}: +-?\d", told, re.M), told
    base = tenant.get(f"/v1/sona/adapters/diff?key={key}&from=0&to=3")
    assert base["kl"] > 0
    assert base["mean_logprob"][1] > base["mean_logprob"][0], "corrections became likelier"
    offline = ("--state-dir", shared.state)
    assert re.search(r"^version: +2$", run("adapters", "show", key, "2", *offline), re.M)
    assert f"* {key}@3" in run("adapters", "list", *offline)
    alone = run("adapters", "diff", key, "1", "3", *offline)
    assert re.search(r"^cosine: +(\S+)$", alone, re.M)[1] == re.search(r"^cosine: +(\S+)$", told, re.M)[1]
    assert re.search(r"^kl: +not known$", alone, re.M)


def test_wrong_questions_get_one_line(shared, taught, tmp_path, monkeypatch):
    tenant, key = taught
    monkeypatch.setenv("SONA_API_KEY", "gateway")
    server = ("--base-url", shared.url)
    assert "404" in run("adapters", "show", key, "99", *server, code=1)
    assert "at least one version" in run("adapters", "diff", key, "0", "0", *server, code=1)
    assert "not known" in run("adapters", "show", "no/such/key", *server, code=1)
    assert "there is no state" in run("adapters", "list", "--state-dir", tmp_path, code=1)
    for query in ("", f"?key={key}", f"?key={key}&version=x", f"?key={key}&version=-1"):
        assert tenant.http.get(f"/v1/sona/adapters/show{query}").status_code == 400
