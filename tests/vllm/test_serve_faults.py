"""What goes wrong between a real `vllm serve` and a real `sona-stream serve` while people teach.

The tests share one vLLM server whose ring is small; the last one breaks its hook.
"""

from __future__ import annotations

import json
import signal
import threading
import time

import httpx
import pytest
from hook_meddler import NAME, HookMeddler
from program import QUICK, Program, until
from vllm_serve import KEY, SERVED, VllmServe

from sona_stream.config.load import hash_key

TRUSTED = {"x-sona-control": KEY}
RING = 128


@pytest.fixture(scope="module")
def meddler(tmp_path_factory) -> HookMeddler:
    return HookMeddler(tmp_path_factory.mktemp("meddler"))


@pytest.fixture
def slow(meddler):
    with meddler.slow():
        yield


@pytest.fixture(scope="module")
def server(model_folder, meddler, tmp_path_factory, request):
    if request.config.getoption("--runner") != "v1":
        pytest.skip("the interpreter of the second runner is not for servers")
    made = VllmServe(tmp_path_factory.mktemp("serve") / "log")
    made.start(
        model_folder,
        plugins=f"sona,sona_http,{NAME}",
        SONA_VLLM_RING_TOKENS=str(RING),
        **meddler.environment,
    )
    yield made
    assert made.stop() == 0, made.text[-4000:]


@pytest.fixture
def start(server, tmp_path):
    """``start()`` starts a proxy, or starts it again with what it knew; in the end none is left."""
    params = {"model": f"vllm/{SERVED}", "api_base": server.base, "control_key": "os.environ/CONTROL"}
    keys = [
        {"key": hash_key(name), "tenant": name, "roles": ["use", "teach", "admin"]} for name in ("alice", "bob")
    ]
    sona = {**QUICK, "keys": keys, "health": {"interval": 0.3}}
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"model_list": [{"model_name": "m", "litellm_params": params}], "sona": sona}))
    programs = []

    def made() -> Program:
        log = tmp_path / f"log{len(programs)}"
        programs.append(Program(["--config", str(path)], tmp_path / "state", log, CONTROL=KEY))
        return programs[-1]

    yield made
    for program in programs:
        if program.process.poll() is None:
            program.stop(signal.SIGKILL)
        assert "Traceback" not in program.log, program.log


def control(server, path):
    return httpx.get(f"{server.base}/sona/{path}", headers=TRUSTED, timeout=30)


def stats_of(server):
    (stats,) = control(server, "stats").json()["engines"]
    return stats


def idle(client):
    until(lambda: client.get("/v1/sona/stats")["learner"]["idle"], seconds=30)


def running(server):
    """Requests that vLLM is answering now, by its own count."""
    lines = httpx.get(f"{server.base.removesuffix('/v1')}/metrics", timeout=30).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running"))


def test_an_answer_that_left_the_ring_is_still_learned_from(server, start):
    program = start()
    alice, bob = program.client("alice", model="m"), program.client("bob", model="m")
    answer = alice.ask("an answer to be judged late")
    for i in range(2 * RING // 16):
        bob.ask(f"the crowd, {i}")
    assert control(server, f"captures?rid={answer.request_id}").status_code == 410
    outcome = alice.teach(answer, rating=-1)
    assert outcome["status"] == "published", outcome
    assert stats_of(server)["lost_rows"] > 0


def test_a_proxy_killed_while_it_learns_learns_each_lesson_once(start):
    """The kill comes at several moments after the acknowledgement: before, while and after the server computes."""
    program = start()
    for lessons, pause in enumerate((0.0, 0.03, 0.1, 0.3), start=1):
        alice = program.client("alice", model="m")
        answer = alice.ask()
        body = {"request_id": answer.request_id, "rating": -1, "idempotency_key": f"lesson {lessons}"}
        status, first = alice.feedback(**body, wait=False)
        assert status in (200, 202), first
        time.sleep(pause)
        program.stop(signal.SIGKILL)

        program = start()
        alice = program.client("alice", model="m")
        idle(alice)
        status, again = alice.feedback(**body)  # a client that heard nothing says it again
        assert (status, again["status"], again["duplicate"]) == (200, "published", True), again
        assert alice.ask().version == lessons
        assert len(alice.get("/v1/sona/adapters")["data"]) == lessons
        assert program.client("bob", model="m").ask().adapter == "none"


def test_a_proxy_that_is_stopped_lets_go_of_its_streams(server, start, slow):
    program = start()
    alice = program.client("alice", model="m")
    body = {"model": "m", "messages": [{"role": "user", "content": "go on"}], "max_tokens": 480, "stream": True}
    began, ended = threading.Event(), []

    def read():
        with alice.http.stream("POST", "/v1/chat/completions", json={**body, "temperature": 0}) as answer:
            try:
                for _ in answer.iter_bytes():
                    began.set()
                ended.append("whole")
            except httpx.HTTPError as error:
                ended.append(type(error).__name__)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert began.wait(30)
    until(lambda: running(server) > 0)  # its numbers come from time to time
    program.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert program.stop(signal.SIGTERM) == 0, program.log  # the second one ends the answers' grace
    for thread in threads:
        thread.join(15)
        assert not thread.is_alive()
    assert len(ended) == len(threads)
    until(lambda: running(server) == 0)
    assert stats_of(server)["disabled"] == ""


def test_a_hook_that_raises_costs_the_adapters_and_nothing_else(server, start, meddler):
    program = start()
    alice, bob = program.client("alice", model="m"), program.client("bob", model="m")
    bare = taught = alice.ask()
    for _ in range(24):
        if taught.text != bare.text:
            break
        alice.teach(taught, correction="a brown fox")
        taught = alice.ask()
    assert taught.version
    assert taught.text != bare.text

    until(lambda: alice.get("/v1/sona/stats")["learner"]["idle"])  # or a reading of its own meets the fault first
    meddler.broken.touch()
    fallen = alice.ask()
    assert (fallen.status, fallen.text) == (200, bare.text)
    stats = stats_of(server)
    assert stats["errors"] == 1
    assert "RuntimeError: forced by the test" in stats["disabled"]
    assert "disabled itself in hidden states" in server.text
    reason = until(lambda: alice.get("/v1/sona/stats")["hosts"].get("m"))
    assert "forced by the test" in reason
    for client in (alice, bob):
        answer = client.ask()
        assert (answer.status, answer.text, answer.adapter) == (200, bare.text, "none")

    # What was captured before is learned from; from the answer in which it happened nothing can be, and one that
    # was given without the hook waits for vLLM's next start.
    assert alice.teach(taught, rating=1)["status"] == "published"
    status, outcome = alice.feedback(request_id=fallen.request_id, rating=1)
    assert status == 410, outcome
    assert "forced by the test" in outcome["error"]["message"]
    assert "sona.storage" not in outcome["error"]["message"]
    status, outcome = alice.feedback(request_id=alice.ask().request_id, rating=1)
    assert (status, outcome["status"]) == (202, "queued"), outcome
    assert "forced by the test" in outcome["reason"]
    assert (alice.ask().text, stats_of(server)["errors"]) == (bare.text, 1)
    off = 'sona_hook_disabled{deployment="1",model="m",reason="hidden states: RuntimeError"}'
    assert until(lambda: alice.metric(off)) == 1
    assert alice.metric('sona_hook_captured_tokens_total{deployment="1",model="m"}') > 0
