"""One correction sticks: it is given again to the same question, to nobody else, until it is taken back."""

from __future__ import annotations

import itertools
import signal

import pytest
from program import Program, command, write_config

from sona_stream.config.load import hash_key

EVERYTHING = ["use", "teach", "admin"]
QUESTION, ANSWER = "What is the refund policy of our shop?", "forty days"


MEMORY = {"contextual": False}  # no test depends on what this machine has fetched
PEOPLE = (("ann", "shop"), ("bob", "shop"), ("eve", "other"))


def configure(folder, tiny_folder, towns=8):
    """Two people of one tenant, one of another, and a gateway, once for each ``town``."""
    keys = [
        {"key": hash_key(f"{name}{town}"), "tenant": f"{tenant}{town}", "roles": EVERYTHING}
        for town in range(towns)
        for name, tenant in PEOPLE
    ]
    gate = {"key": hash_key("gate"), "tenant": "gated", "roles": EVERYTHING, "trusted_gateway": True}
    sona = {"keys": [*keys, gate], "user_header": "x-user", "learner": {"replay_every": 1000}, "memory": MEMORY}
    return write_config(folder / "config.json", tiny_folder, sona)


@pytest.fixture(scope="module")
def program(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    started = Program(["--config", str(configure(folder, tiny_folder))], folder / "state", folder / "log")
    yield started
    started.stop()


@pytest.fixture
def people(program, towns=itertools.count()):  # noqa: B008
    """ann and bob of one tenant, eve of another; nobody else has been them."""
    town = next(towns)
    clients = [program.client(f"{name}{town}") for name, _ in PEOPLE]
    for client, (_, tenant) in zip(clients, PEOPLE, strict=True):
        client.tenant = f"{tenant}{town}"
    return clients


def test_a_correction_is_the_very_next_answer(people):
    ann, bob, eve = people
    others = {who: who.ask(QUESTION).text for who in (bob, eve)}
    before, elsewhere = ann.ask(QUESTION), ann.ask("Tell me a joke")
    assert "x-sona-episodes" not in before.headers
    status, outcome = ann.feedback(request_id=before.request_id, correction=ANSWER, wait=False)
    assert status == 202, outcome
    after = ann.ask(QUESTION)
    assert after.text == ANSWER
    assert after.body["choices"][0]["finish_reason"] == "stop"
    assert ann.ask("Tell me a joke").text == elsewhere.text
    assert ann.ask(QUESTION, headers={"x-sona-adapt": "off"}).text == before.text
    for who, text in others.items():
        answer = who.ask(QUESTION)
        assert answer.text == text
        assert "x-sona-episodes" not in answer.headers
    (row,) = ann.get(f"/v1/sona/memory?tenant={ann.tenant}")["data"]
    assert after.headers["x-sona-episodes"] == row["key"]
    assert (row["scope"], row["request_id"]) == ("person", before.request_id)


def test_a_correction_takes_no_step(people):
    ann, _, _ = people
    outcome = ann.teach(ann.ask(QUESTION), correction=ANSWER)
    assert outcome["status"] == "accepted"
    assert "remembered as" in outcome["reason"]
    assert ann.ask("Tell me a joke").adapter == "none"


def test_undo_restores_the_answer_byte_for_byte(people):
    ann, bob, _ = people
    before = ann.ask(QUESTION)
    ann.teach(before, correction=ANSWER)
    ann.teach(ann.ask(QUESTION), correction="fifty days")
    assert ann.ask(QUESTION).text == "fifty days"
    assert bob.http.post("/v1/feedback/undo", json={}).status_code == 404
    assert ann.http.post("/v1/feedback/undo", json={}).json()["returned"]
    assert ann.ask(QUESTION).text == ANSWER
    assert ann.http.post("/v1/feedback/undo", json={}).status_code == 200
    assert ann.ask(QUESTION).text == before.text
    nothing = ann.http.post("/v1/feedback/undo", json={})
    assert nothing.status_code == 404
    assert "no correction of yours" in nothing.json()["error"]["message"]
    refused = ann.http.post("/v1/feedback/undo", json={"modle": "tiny"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "modle"


def test_an_admin_promotes_and_forgets(program, people):
    ann, bob, eve = people
    others = {who: who.ask(QUESTION).text for who in (bob, eve)}
    ann.teach(ann.ask(QUESTION), correction=ANSWER)
    (key,) = [row["key"] for row in ann.get(f"/v1/sona/memory?tenant={ann.tenant}")["data"]]
    asked = ("--base-url", program.url, "--api-key", ann.key)
    listed = command("memory", "list", "--tenant", ann.tenant, *asked)
    assert key in listed.stdout
    promoted = command("memory", "promote", key, *asked)
    assert promoted.returncode == 0, promoted.stderr
    assert bob.ask(QUESTION).text == ANSWER
    assert eve.ask(QUESTION).text == others[eve]
    assert command("memory", "promote", key, "--scope", "global", *asked).returncode == 0
    assert eve.ask(QUESTION).text == ANSWER
    assert command("memory", "promote", "1-0000000000000000", *asked).returncode == 1
    assert "1 forgotten" in command("memory", "forget", key, "--yes", *asked).stdout
    assert {who: who.ask(QUESTION).text for who in (bob, eve)} == others
    assert command("memory", "list", "--tenant", ann.tenant, *asked).stdout == "nothing is remembered\n"


def test_end_users_of_a_gateway_have_memories_of_their_own(program):
    gate = program.client("gate")
    before = {user: gate.ask(QUESTION, headers={"x-user": user}).text for user in ("kim", "lee")}
    answer = gate.ask(QUESTION, headers={"x-user": "kim"})
    said = {"request_id": answer.request_id, "correction": ANSWER, "user": "kim"}
    assert gate.feedback(**said)[0] == 200
    assert gate.ask(QUESTION, headers={"x-user": "kim"}).text == ANSWER
    assert gate.ask(QUESTION, headers={"x-user": "lee"}).text == before["lee"]


def test_it_outlives_the_program_and_a_kill(serve, tiny_folder, tmp_path):
    config = str(configure(tmp_path, tiny_folder, towns=1))
    program = serve("--config", config)
    ann = program.client("ann0")
    ann.feedback(request_id=ann.ask(QUESTION).request_id, correction=ANSWER, wait=False)
    program.stop(signal.SIGKILL)
    ann = serve("--config", config).client("ann0")
    assert ann.ask(QUESTION).text == ANSWER


def test_a_stream_and_a_completion_are_recalled_too(people):
    ann, _, _ = people
    ann.teach(ann.ask(QUESTION), correction=ANSWER)
    stream = ann.openai.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=16, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ANSWER
    asked = {"model": "tiny", "prompt": "the quick brown", "temperature": 0, "max_tokens": 16}
    plain = ann.http.post("/v1/completions", json=asked)
    said = {"request_id": plain.headers["x-sona-request-id"], "correction": " fox jumps"}
    assert ann.feedback(**said)[0] == 200
    again = ann.http.post("/v1/completions", json=asked)
    assert again.json()["choices"][0]["text"] == " fox jumps" != plain.json()["choices"][0]["text"]


def test_the_stats_say_what_is_remembered(people):
    ann, _, _ = people
    ann.teach(ann.ask(QUESTION), correction=ANSWER)
    memory = ann.get("/v1/sona/stats")["memory"]
    assert memory["episodes"] >= 1
    assert memory["durable"] is True
    assert memory["recognises"] == "nearly the same words only"
