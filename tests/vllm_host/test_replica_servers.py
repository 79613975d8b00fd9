"""Two vLLM servers under one model's name, behind `sona-stream serve`: both serve what either was taught."""

import json
import time

import pytest
from fake_vllm_server import KEY, MODEL, FakeVllm
from program import QUICK, until

from sona_stream.config.load import hash_key

TEXT = "hello"
SOON = {"sona_stream.stages.rota.COOLDOWN_S": 1.0}
"""One that could not be reached comes last for a second, not for ten."""


@pytest.fixture
def pair():
    with FakeVllm() as one, FakeVllm() as other:
        yield one, other


@pytest.fixture
def started(serve, tmp_path, pair):
    def start(*, ready=True, **sona):
        params = {"model": f"vllm/{MODEL}", "control_key": "os.environ/CONTROL"}
        entries = [{"model_name": "m", "litellm_params": {**params, "api_base": one.base}} for one in pair]
        keys = [{"key": hash_key("alice"), "tenant": "alice", "roles": ["use", "teach", "admin"]}]
        path = tmp_path / "config.yaml"
        block = {**QUICK, "keys": keys, "health": {"interval": 0.2}, **sona}
        path.write_text(json.dumps({"model_list": entries, "sona": block}))
        program = serve("--config", str(path), ready=ready, constants=SOON, CONTROL=KEY)
        return program, program.client("alice", model="m")

    return start


def asked(client):
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": TEXT}]}
    with client.http.stream("POST", "/v1/chat/completions", json=body) as response:
        response.read()
        return response


def adapter(client):
    return asked(client).headers["x-sona-adapter"]


def teach(client, response, **verdict):
    status, outcome = client.feedback(request_id=response.headers["x-sona-request-id"], **verdict)
    return status, outcome


def both_there(client):
    """Answers come from each in turn; until then one of them may not have been asked yet."""
    until(lambda: client.get("/v1/sona/stats")["backends"]["m"] == ["ready", "ready"])


def put(server):
    return {key: version for key, (version, _) in server.worker.toy.adapters.items()}


def test_each_is_taught_what_either_answered(started, pair):
    _, alice = started()
    both_there(alice)
    for version in (1, 2, 3, 4):  # the deployments take turns
        status, outcome = teach(alice, asked(alice), rating=1)
        assert (status, outcome.get("status")) == (200, "published"), outcome
        assert [put(one) for one in pair] == [{"m/alice/*": version}] * 2
    assert {adapter(alice) for _ in range(4)} == {"m/alice/*@4"}
    assert all(one.app.seen[-1]["vllm_xargs"]["sona"] == "m/alice/*" for one in pair)
    assert all("sona_capture" in one.worker.calls for one in pair)


def test_one_that_starts_again_has_them_before_it_answers(started, pair):
    one, other = pair
    _, alice = started()
    both_there(alice)
    teach(alice, asked(alice), rating=1)
    other.stop()
    until(lambda: alice.get("/v1/sona/stats")["backends"]["m"][1] != "ready")
    before = asked(alice)
    assert before.headers["x-sona-adapter"] == "m/alice/*@1"
    assert teach(alice, before, rating=1)[1]["status"] == "published"  # the other one learns alone
    other.start()

    def answered():
        assert adapter(alice) == "m/alice/*@2"
        return len(other.app.seen) > 2

    until(answered, seconds=20)
    assert put(other) == put(one) == {"m/alice/*": 2}


def test_one_that_comes_late_never_answers_bare(started, pair):
    _, other = pair
    other.stop()
    _, alice = started()
    assert teach(alice, asked(alice), rating=1)[1]["status"] == "published"
    other.start()
    answers = []
    until(lambda: answers.append(adapter(alice)) or len(other.app.seen) > 1, seconds=20)
    assert set(answers) == {"m/alice/*@1"}


def test_an_answer_of_one_that_died_is_learned_by_the_other(started, pair):
    _, alice = started()
    both_there(alice)
    answers = [asked(alice), asked(alice)]
    pair[0].stop()
    until(lambda: alice.get("/v1/sona/stats")["backends"]["m"][0] != "ready")
    time.sleep(0.3)  # so soon it would be told to wait: the replicas are looked at ten times a second
    for answer in answers:
        status, outcome = teach(alice, answer, rating=1)
        assert (status, outcome.get("status")) == (200, "published"), outcome
    assert put(pair[1]) == {"m/alice/*": 2}


def test_another_model_under_the_same_name_is_left_alone(started, pair):
    _, other = pair
    other.stop()
    other.start(seed=5, fingerprint="other")
    program, alice = started()
    both_there(alice)
    problem = until(lambda: alice.get("/v1/sona/stats")["hosts"].get("m"))
    assert "deployment 2" in problem
    assert "another model (other)" in problem
    assert "deployment 2" in program.log
    answers = {}
    for _ in range(2):
        before = len(other.app.seen)
        answer = asked(alice)
        answers["other" if len(other.app.seen) > before else "one"] = answer
    assert teach(alice, answers["one"], rating=1)[1]["status"] == "published"
    status, body = teach(alice, answers["other"], rating=1)
    assert status == 410
    assert "another model" in body["error"]["message"]
    assert put(other) == {}
    assert {adapter(alice) for _ in range(4)} == {"none", "m/alice/*@1"}


def test_the_hooks_counters_are_at_metrics(started, pair):
    one, other = pair
    _, alice = started()
    both_there(alice)
    teach(alice, asked(alice), rating=1)
    until(lambda: alice.metric('sona_hook_puts_total{deployment="2",model="m"}') == 1)
    assert alice.metric('sona_hook_puts_total{deployment="1",model="m"}') == 1
    assert alice.metric('sona_hook_reachable{deployment="1",model="m"}') == 1
    assert alice.metric('sona_hook_calls_total{deployment="1",model="m"}') > 0
    assert alice.metric('sona_hook_disabled{deployment="1",model="m",reason=""}') == 0
    assert 'sona_hook_disabled{deployment="1",model="m",reason=""} 0.0' in alice.http.get("/metrics").text
    one.worker.disabled = "logits: RuntimeError: words that may be anything"
    until(lambda: alice.metric('sona_hook_disabled{deployment="1",model="m",reason="logits: RuntimeError"}') == 1)
    assert "anything" not in alice.http.get("/metrics").text
    other.stop()
    until(lambda: 'sona_hook_reachable{deployment="2",model="m"} 0.0' in alice.http.get("/metrics").text)
    assert 'sona_hook_puts_total{deployment="2"' not in alice.http.get("/metrics").text
