"""A real `sona-stream serve` with vLLM's engine inside. The tests share it and run in this order: the last ones
start it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest
from hook_meddler import NAME, HookMeddler
from program import QUICK, Program, until

from sona_stream.config.load import hash_key

ARGUMENTS = {"max_model_len": 512, "max_num_seqs": 8, "dtype": "float32", "enforce_eager": True}


def configured(folder: Path, model: Path) -> list[str]:
    """The program's arguments."""
    keys = [
        {"key": hash_key(name), "tenant": name, "roles": ["use", "teach", "admin"]} for name in ("alice", "bob")
    ]
    params = {"model": f"vllm_inprocess/{model}", "engine_args": ARGUMENTS}
    entry = {"model_name": "m", "litellm_params": params}
    sona = {**QUICK, "keys": keys, "health": {"interval": 0.5}}
    (folder / "config.yaml").write_text(json.dumps({"model_list": [entry], "sona": sona}))
    return ["--config", str(folder / "config.yaml")]


class Served:
    """The program, and what starts it again on the same state."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.arguments = [*configured(folder, model), "--grace", "2"]
        self.meddler = HookMeddler(folder)
        self.start()

    def start(self) -> None:
        environment = {"VLLM_PLUGINS": f"sona,{NAME}", **self.meddler.environment}
        self.program = Program(self.arguments, self.folder / "state", self.folder / "log", **environment)
        self.alice, self.bob = (self.program.client(name, model="m") for name in ("alice", "bob"))


@pytest.fixture(scope="module")
def served(model_folder, tmp_path_factory, request):
    if request.config.getoption("--runner") != "v1":
        pytest.skip("the interpreter of the second runner is not for processes of the engine's own")
    made = Served(tmp_path_factory.mktemp("inprocess"), model_folder)
    yield made
    assert made.program.stop() == 0, made.program.log
    assert "Traceback" not in made.program.log
    assert not engine_processes(made.program)


def engine_processes(program):
    """Ids of living processes whose parent, or whose parent's, is this program."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    children = {pid for pid, parent in parents.items() if parent == program.process.pid}
    return children | {pid for pid, parent in parents.items() if parent in children}


def lines_of(url, key, tokens, **fields):
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "go on"}],
        "stream": True,
        "max_tokens": tokens,
        "temperature": 0,
        **fields,
    }
    headers = {"authorization": f"Bearer {key}"}
    return httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)


@pytest.mark.parametrize("moment", ["it imports", "its processes start"])
def test_sigterm_while_the_engine_starts(model_folder, tmp_path, moment, request):
    """The program ends at once, and nothing of the engine is left."""
    if request.config.getoption("--runner") != "v1":
        pytest.skip("the interpreter of the second runner is not for processes of the engine's own")
    program = Program(
        configured(tmp_path, model_folder), tmp_path / "state", tmp_path / "log", ready=False, OF=str(tmp_path)
    )
    until(lambda: "starting vLLM" in program.log, seconds=60)
    started: set[int] = set()
    if moment == "its processes start":
        started = until(lambda: engine_processes(program), seconds=120)
    began = time.monotonic()
    assert program.stop() == 0, program.log
    assert time.monotonic() - began < 15
    assert "Traceback" not in program.log
    until(lambda: not any(alive(pid) for pid in started), seconds=3)
    until(lambda: not left_of(tmp_path), seconds=3)


def left_of(folder):
    """Processes whose environment names this state."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(folder).encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
        except OSError:
            continue  # it ended, or is somebody else's
    return [pid for pid in found if pid != os.getpid() and alive(pid)]


def test_the_openai_client_streams(served):
    stream = served.alice.openai.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "hello"}],
        stream=True,
        max_tokens=8,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(one.delta.content or "" for one in choices)
    assert choices[-1].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 8
    tops = [one for choice in choices if choice.logprobs for one in choice.logprobs.content]
    assert len(tops) == 8
    assert all(len(one.top_logprobs) == 2 for one in tops)


def test_several_at_once_answer_as_each_alone(served):
    texts = ["the", "quick brown fox", "jumps over the lazy dog"]
    alone = [served.bob.ask(text).text for text in texts]
    together: dict[int, str] = {}

    def ask(i: int) -> None:
        together[i] = served.program.client("bob", model="m").ask(texts[i % 3]).text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(6)] == alone * 2


def test_clients_that_leave_free_the_engine(served):
    """As many as it answers at once, tens of seconds before their ends."""

    def answered_now():
        return served.bob.metric('sona_hook_live_requests{deployment="1",model="m"}')

    with served.meddler.slow():
        with contextlib.ExitStack() as open_streams:
            for _ in range(ARGUMENTS["max_num_seqs"]):
                answer = open_streams.enter_context(lines_of(served.program.url, "bob", 480))
                assert answer.status_code == 200
            until(lambda: answered_now() == ARGUMENTS["max_num_seqs"])  # it is asked from time to time
        until(lambda: answered_now() == 0, seconds=20)
    assert served.bob.ask().status == 200


def test_too_long_a_prompt_is_a_400(served):
    answer = served.bob.ask("the " * 600)
    assert answer.status == 400
    assert answer.body["error"]["param"] == "messages"
    assert "512" in answer.body["error"]["message"]


def test_feedback_changes_the_next_answer_and_no_other_tenant(served):
    alice, bob = served.alice, served.bob
    before, others = alice.ask(), bob.ask()
    assert (before.adapter, others.adapter) == ("none", "none")
    assert before.text == others.text
    assert alice.teach(before, rating=-1)["status"] == "published"
    for _ in range(12):  # a rating is a hint, a correction says what is wanted
        alice.teach(alice.ask(), correction="a brown fox")
        after = alice.ask()
        assert after.adapter.startswith("m/alice/*@")
        if after.text != before.text:
            break
    assert after.text != before.text
    again = bob.ask(vllm_xargs={"sona": "m/alice/*"})
    assert (again.adapter, again.text) == ("none", others.text)


def test_the_engine_dies_with_the_proxy_and_what_was_learned_comes_back(served):
    before = served.alice.ask()
    assert before.adapter.startswith("m/alice/*@")
    left = engine_processes(served.program)
    assert left
    served.program.stop(signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in left), seconds=30)
    served.start()
    after = served.alice.ask()
    assert (after.adapter, after.text) == (before.adapter, before.text)
    assert served.bob.ask().adapter == "none"


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_sigterm_with_an_open_stream_ends_it(served):
    """After the grace, tens of seconds before its last token."""
    with served.meddler.slow(), lines_of(served.program.url, "bob", 480) as answer:
        lines = answer.iter_lines()
        for _ in range(6):
            next(lines)
        served.program.process.send_signal(signal.SIGTERM)
        rest = "\n".join(lines)
    assert '"error"' in rest
    assert "[DONE]" not in rest
    assert served.program.process.wait(30) == 0
