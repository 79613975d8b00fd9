"""Two real `vllm serve` of one model under one name, behind a real `sona-stream serve`."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from program import QUICK, Program, until
from vllm_serve import KEY, SERVED, VllmServe

from sona_stream.config.load import hash_key


@pytest.fixture(scope="module")
def pair(model_folder, tmp_path_factory, request):
    if request.config.getoption("--runner") != "v1":
        pytest.skip("the interpreter of the second runner is not for servers")
    made = [VllmServe(tmp_path_factory.mktemp("serve") / "log") for _ in range(2)]
    try:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda one: one.start(model_folder), made))
        yield made
    finally:
        codes = [one.stop() for one in made]
    assert codes == [0, 0], [one.text[-4000:] for one, code in zip(made, codes, strict=True) if code != 0]


@pytest.fixture(scope="module")
def program(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("proxy")
    params = {"model": f"vllm/{SERVED}", "control_key": "os.environ/CONTROL"}
    entries = [{"model_name": "m", "litellm_params": {**params, "api_base": one.base}} for one in pair]
    keys = [{"key": hash_key("alice"), "tenant": "alice", "roles": ["use", "teach", "admin"]}]
    sona = {**QUICK, "keys": keys, "health": {"interval": 0.5}}
    (folder / "config.yaml").write_text(json.dumps({"model_list": entries, "sona": sona}))
    made = Program(["--config", str(folder / "config.yaml")], folder / "state", folder / "log", CONTROL=KEY)
    yield made
    assert made.stop() == 0, made.log
    assert "Traceback" not in made.log


def control(server, path):
    return httpx.get(f"{server.base}/sona/{path}", headers={"x-sona-control": KEY}, timeout=60).json()


def held(server):
    return [(row["key"], row["version"]) for row in control(server, "adapters")["adapters"] if row["current"]]


def test_both_are_taught_and_answer_alike(pair, program):
    prints = {control(one, "info")["fingerprint"] for one in pair}
    assert len(prints) == 1
    alice = program.client("alice", model="m")
    until(lambda: alice.get("/v1/sona/stats")["backends"]["m"] == ["ready", "ready"])
    bare = alice.ask()
    for version in range(1, 5):  # the servers take turns; each lesson is learned from where it was given
        outcome = (
            alice.teach(alice.ask(), correction="a brown fox")
            if version % 2
            else alice.teach(alice.ask(), rating=1)
        )
        assert outcome["status"] == "published", outcome
        assert held(pair[0]) == held(pair[1]) == [("m/alice/*", version)]
    answers = [alice.ask() for _ in range(4)]
    assert {answer.version for answer in answers} == {4}
    assert len({answer.text for answer in answers}) == 1
    assert bare.adapter == "none"
    for number in (1, 2):
        labels = f'{{deployment="{number}",model="m"}}'
        assert until(lambda labels=labels: alice.metric(f"sona_hook_captured_tokens_total{labels}")) > 0
        assert alice.metric(f"sona_hook_reachable{labels}") == 1


def test_one_is_started_again(pair, program, model_folder):
    alice = program.client("alice", model="m")
    before = [alice.ask(), alice.ask()]
    assert pair[1].stop() == 0
    until(lambda: alice.get("/v1/sona/stats")["backends"]["m"][1] != "ready")
    for answer in before:  # also the one that the other server gave
        status, outcome = alice.feedback(request_id=answer.request_id, rating=1)
        # queued: it was given before the server's absence was noticed, and is learned once it is
        assert (status, outcome["status"]) in ((200, "published"), (202, "queued")), outcome
    taught = before[0].version + len(before)
    version = until(lambda: (served := alice.ask().version) >= taught and served)
    pair[1].start(model_folder)
    versions = []
    until(lambda: versions.append(alice.ask().version) or held(pair[1]) == held(pair[0]), seconds=60)
    versions += [alice.ask().version for _ in range(4)]
    assert set(versions) == {version}
