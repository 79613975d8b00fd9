"""`sona-stream serve` in front of the fake vLLM: what a person sees of feedback, restarts and missing servers."""

import json
import re
import signal
import sqlite3
import time

import numpy as np
import pytest
from fake_vllm_server import KEY, MODEL
from program import QUICK, until

from sona_stream.config.load import hash_key


def config(tmp_path, *servers, keys=True, extra=(), **sona):
    entries = [
        {
            "model_name": name,
            "litellm_params": {"model": f"vllm/{MODEL}", "api_base": base, "control_key": "os.environ/CONTROL"},
        }
        for name, base in servers
    ]
    own = [
        {"key": hash_key("alice"), "tenant": "alice", "roles": ["use", "teach", "admin"]},
        {"key": hash_key("bob"), "tenant": "bob", "roles": ["use", "teach"]},
        {"key": hash_key("gateway"), "tenant": "shared", "roles": ["use", "teach"], "trusted_gateway": True},
    ]
    block = {**QUICK, "health": {"interval": 0.2}, **({"keys": own} if keys else {}), **sona}
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"model_list": [*entries, *extra], "sona": block}))
    return path


@pytest.fixture
def started(serve, tmp_path, vllm):
    def start(*, ready=True, **sona):
        path = config(tmp_path, ("m", vllm.base), **sona)
        return serve("--config", str(path), ready=ready, CONTROL=KEY)

    return start


def talk(program, key="alice"):
    return program.client(key, model="m")


def stats(client):
    return client.get("/v1/sona/stats")


def asked(client, text="hello", **fields):
    """The fake answers in streams only."""
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": text}], **fields}
    with client.http.stream("POST", "/v1/chat/completions", json=body) as response:
        response.read()
        return response


def teach(client, response, *, wait=True, **verdict):
    rid = response.headers["x-sona-request-id"]
    return client.feedback(request_id=rid, wait=wait, **verdict)


def test_feedback_reaches_the_next_answer_and_no_other_tenant(started, vllm):
    program = started()
    alice, bob = talk(program), talk(program, "bob")
    assert asked(alice).headers["x-sona-adapter"] == "none"
    status, outcome = teach(alice, asked(alice), rating=1)
    assert (status, outcome.get("status")) == (200, "published"), outcome
    assert asked(alice).headers["x-sona-adapter"] == "m/alice/*@1"
    assert vllm.app.seen[-1]["vllm_xargs"]["sona"] == "m/alice/*"
    assert asked(bob).headers["x-sona-adapter"] == "none"
    assert "sona" not in vllm.app.seen[-1]["vllm_xargs"]
    asked(bob, vllm_xargs={"sona": "m/alice/*", "sona_version": 1})
    assert "sona" not in vllm.app.seen[-1]["vllm_xargs"]


@pytest.mark.parametrize("storage", ["features", "none"])
def test_two_users_of_one_trusted_key_are_told_apart(started, storage):
    """A gateway in front: one key, the end user in a header. What one of them teaches never reaches the other."""
    program = started(storage=storage)
    gateway = talk(program, "gateway")

    def speaks(who):
        gateway.http.headers["x-sona-user"] = who

    speaks("ann@example.org")
    answer = asked(gateway)
    if storage != "none":
        speaks("eve")
        assert teach(gateway, answer, rating=1)[0] == 404
        speaks("ann@example.org")
    status, outcome = teach(gateway, answer, rating=1)
    assert (status, outcome.get("status")) == (200, "published"), outcome
    hers = asked(gateway).headers["x-sona-adapter"]
    assert re.fullmatch(r"m/shared:[0-9a-f]{16}/\*@1", hers)
    speaks("eve")
    assert asked(gateway).headers["x-sona-adapter"] == "none"
    assert asked(gateway, user="ann@example.org").headers["x-sona-adapter"] == "none"  # the header comes first
    del gateway.http.headers["x-sona-user"]
    assert asked(gateway).headers["x-sona-adapter"] == "none"
    assert asked(gateway, user="ann@example.org").headers["x-sona-adapter"] == hers
    bob = talk(program, "bob")
    assert asked(bob, user="ann@example.org").headers["x-sona-adapter"] == "none"


def test_late_feedback_is_encoded_again(started, vllm):
    program = started()
    alice = talk(program)
    answer = asked(alice)
    vllm.worker.toy.captures.clear()  # the ring has moved on
    vllm.worker.toy.calls.clear()
    status, outcome = teach(alice, answer, rating=1)
    assert (status, outcome.get("status")) == (200, "published"), outcome
    assert vllm.worker.toy.calls.count("encode") == 1


def test_late_feedback_without_storage_is_gone_and_names_the_setting(started, vllm):
    program = started(storage="none")
    alice = talk(program)
    answer = asked(alice)
    vllm.worker.toy.captures.clear()
    status, body = teach(alice, answer, rating=1)
    assert status == 410
    assert "sona.storage" in body["error"]["message"]


def test_a_restart_of_the_server(started, vllm):
    program = started()
    alice = talk(program)
    before = asked(alice)
    assert teach(alice, asked(alice), rating=1)[1]["status"] == "published"
    vllm.stop()
    status, outcome = teach(alice, before, rating=1)
    assert (status, outcome["status"]) == (202, "queued"), outcome  # it waits
    vllm.start()
    answer = asked(alice)
    assert answer.headers["x-sona-adapter"].startswith("m/alice/*@")
    assert vllm.worker.put_log[0][0] == "m/alice/*"
    until(
        lambda: stats(alice)["learner"]["pending"] == 0 and stats(alice)["learner"]["counters"].get("accepted") == 2
    )


def test_another_model_of_the_same_width(started, vllm):
    program = started()
    alice = talk(program)
    late = asked(alice)
    assert teach(alice, asked(alice), rating=1)[1]["status"] == "published"
    vllm.stop()
    vllm.start(seed=5, fingerprint="other")
    assert asked(alice).headers["x-sona-adapter"] == "none"
    problem = until(lambda: stats(alice)["learner"]["problems"])[0]
    assert "m/alice/*@1 was made for toy" in problem
    assert "the model is other" in problem
    assert asked(alice).headers["x-sona-adapter"] == "none"
    assert vllm.worker.put_log == []
    status, body = teach(alice, late, rating=1)
    assert status == 410
    assert "another model" in body["error"]["message"]
    assert teach(alice, asked(alice), rating=1)[1]["status"] == "published"  # the new one learns from the start
    assert vllm.worker.put_log[0] == ("m/alice/*", 2)


def test_the_proxy_is_killed_and_comes_back(started, vllm, serve, tmp_path):
    program = started()
    alice = talk(program)
    assert teach(alice, asked(alice), rating=1)[1]["status"] == "published"
    answer = asked(alice)
    assert teach(alice, answer, rating=-1, wait=False)[0] == 202
    program.stop(signal.SIGKILL)
    program = started()
    alice = talk(program)
    assert asked(alice).headers["x-sona-adapter"].startswith("m/alice/*@")
    until(lambda: stats(alice)["learner"]["idle"])
    status, outcome = teach(alice, answer, rating=-1)
    assert status == 200, outcome


def test_a_missing_server_keeps_no_other_waiting(serve, tmp_path, vllm):
    path = config(tmp_path, ("m", vllm.base), ("gone", "http://127.0.0.1:9/v1"))
    program = serve("--config", str(path), CONTROL=KEY)
    alice = talk(program)
    assert teach(alice, asked(alice), rating=1)[1]["status"] == "published"
    assert "gone" in stats(alice)["hosts"]
    assert "m" not in stats(alice)["hosts"]


def test_a_server_that_comes_late_is_joined(started, vllm):
    vllm.stop()
    program = started(ready=False)
    alice = talk(program)
    assert asked(alice).status_code in (502, 503)
    vllm.start()
    until(lambda: asked(alice).status_code == 200)
    assert teach(alice, asked(alice), rating=1)[1]["status"] == "published"


def test_without_the_plugin_the_reason_is_shown(started, vllm):
    vllm.stop()
    vllm.start(plugin=False)
    program = started()
    alice = talk(program)
    assert asked(alice).status_code == 200
    assert "no plug-in" in stats(alice)["hosts"]["m"]


@pytest.mark.parametrize("storage", ["features", "none"])
def test_an_answer_without_the_hook(started, vllm, storage):
    """Its feedback waits for the hook where token ids are kept; else the reason is the true one."""
    program = started(storage=storage)
    alice = talk(program)
    assert teach(alice, asked(alice), rating=1)[1]["status"] == "published"
    vllm.worker.disabled = "logits: RuntimeError: forced"
    time.sleep(0.15)
    answer = asked(alice)
    assert answer.headers["x-sona-adapter"] == "none"
    status, body = teach(alice, answer, rating=1)
    if storage == "none":
        assert status == 410
        assert "RuntimeError: forced" in body["error"]["message"]
        assert "sona.storage" not in body["error"]["message"]
        return
    assert (status, body["status"]) == (202, "queued"), body
    assert "RuntimeError: forced" in body["reason"]
    vllm.worker.disabled = ""
    until(lambda: stats(alice)["learner"]["pending"] == 0 and stats(alice)["learner"]["counters"]["accepted"] == 2)


@pytest.mark.parametrize("storage", ["features", "none"])
def test_an_answer_in_which_the_hook_fails(started, vllm, storage, tmp_path):
    program = started(storage=storage)
    alice = talk(program)
    assert teach(alice, asked(alice), rating=1)[1]["status"] == "published"
    vllm.worker.breaks = "logits: RuntimeError: forced"
    answer = asked(alice)
    assert answer.headers["x-sona-adapter"] == "m/alice/*@1"
    rid = answer.headers["x-sona-request-id"]
    for wait in (True, False):
        status, body = teach(alice, answer, rating=-1, wait=wait, idempotency_key=f"{wait}")
        if wait or storage == "none":
            assert status == 410, body
            assert "failed while it was being answered" in body["error"]["message"]
    until(lambda: asked(alice).headers["x-sona-adapter"] == "none")  # from the next look at the server on
    if storage == "features":
        until(lambda: f"request {rid} was not adapted" in program.log)
        program.stop()
        database = sqlite3.connect(next(tmp_path.rglob("*.sqlite*")))
        (facts,) = database.execute("SELECT facts FROM trajectories WHERE request_id = ?", (rid,)).fetchone()
        database.close()
        assert json.loads(facts)["adapter"] is None
        assert "forced" in json.loads(facts)["no_capture"]


def test_the_control_key_is_shown_nowhere(started, vllm):
    program = started()
    alice = talk(program)
    teach(alice, asked(alice), rating=1)
    pages = [
        alice.http.get(path).text for path in ("/v1/sona/stats", "/v1/sona/adapters", "/metrics", "/v1/models")
    ]
    assert KEY not in "".join(pages)
    assert program.stop() == 0
    assert KEY not in program.log
    assert "Traceback" not in program.log


def test_the_time_a_bound_request_costs(started, vllm):
    """Nothing is asked of the control side while an adapter is where it should be."""
    program = started()
    alice = talk(program)
    teach(alice, asked(alice), rating=1)
    time.sleep(0.3)
    vllm.worker.calls.clear()
    for _ in range(3):
        asked(alice)
    assert set(vllm.worker.calls) <= {"sona_install", "sona_stats"}  # stats are asked for every few seconds anyway
    assert np.isfinite(vllm.worker.toy.adapters["m/alice/*"][1].micro.lora_B).all()
