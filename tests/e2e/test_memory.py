"""One correction sticks: it is given again to the same question, to nobody else, until it is taken back."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import sqlite3
import time

import pytest
from program import Program, command, until, write_config
from tiny_model import save_tiny_model

from sona_stream.config.load import hash_key

EVERYTHING = ["use", "teach", "admin"]
QUESTION, ANSWER = "What is the refund policy of our shop?", "forty days"


MEMORY = {"contextual": False}  # no test depends on what this machine has fetched
PEOPLE = (("ann", "shop"), ("bob", "shop"), ("eve", "other"))


def configure(folder, tiny_folder, towns=12, **more):
    """Two people of one tenant, one of another, and a gateway, once for each ``town``."""
    keys = [
        {"key": hash_key(f"{name}{town}"), "tenant": f"{tenant}{town}", "roles": EVERYTHING}
        for town in range(towns)
        for name, tenant in PEOPLE
    ]
    gate = {"key": hash_key("gate"), "tenant": "gated", "roles": EVERYTHING, "trusted_gateway": True}
    sona = {"keys": [*keys, gate], "user_header": "x-user", "learner": {"replay_every": 1000}, "memory": MEMORY}
    sona |= more
    return write_config(folder / "config.json", tiny_folder, sona)


@pytest.fixture(scope="module")
def program(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    config = ["--config", str(configure(folder, tiny_folder))]
    started = Program(config, folder / "state", folder / "log", forked=True)
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


def test_a_correction_of_an_answer_from_before_a_kill_is_remembered(serve, tiny_folder, tmp_path):
    """At storage `features`: the question's text was in memory only, and is gone."""
    config = str(configure(tmp_path, tiny_folder, towns=1))
    program = serve("--config", config)
    ann = program.client("ann0")
    other = ann.ask("Tell me a joke").text
    answer = ann.ask(QUESTION)
    until(lambda: _kept(tmp_path / "state") == 2)
    program.stop(signal.SIGKILL)
    assert not any(b"refund" in path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file())
    program = serve("--config", config)
    ann = program.client("ann0")
    outcome = ann.teach(answer, correction=ANSWER)
    assert "remembered as" in outcome["reason"]
    assert ann.ask(QUESTION).text == ANSWER
    assert ann.ask("what is the refund policy of our shop").text == ANSWER
    assert ann.ask("Tell me a joke").text == other
    assert program.client("bob0").ask(QUESTION).text == answer.text
    (row,) = ann.get("/v1/sona/memory?tenant=shop0")["data"]
    assert (row["request_id"], row["question"], row["answer"]) == (answer.request_id, None, None)
    assert ann.http.post("/v1/feedback/undo", json={}).status_code == 200
    assert ann.ask(QUESTION).text == answer.text


def _kept(state):
    """Answers that are on the disk with their questions, which are written apart."""
    connection = sqlite3.connect(f"file:{state / 'state.sqlite3'}?mode=ro", uri=True)
    try:
        (count,) = connection.execute(
            "SELECT count(*) FROM questions JOIN trajectories USING (request_id)"
        ).fetchone()
        return count
    finally:
        connection.close()


def test_another_model_is_taught_what_its_predecessor_was(serve, tiny_folder, tmp_path):
    """At storage `text`, in the background after a start."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    config = str(configure(tmp_path, folder, towns=1, storage="text"))
    program = serve("--config", config)
    ann = program.client("ann0")
    ann.teach(ann.ask(QUESTION), correction=ANSWER)
    (old,) = ann.get("/v1/sona/memory?tenant=shop0")["data"]
    assert (old["fits"], old["renewable"]) == (True, True)
    program.stop()
    shutil.rmtree(folder)
    save_tiny_model(folder, seed=7, max_position_embeddings=4096)
    ann = serve("--config", config).client("ann0")
    plain = ann.ask(QUESTION, headers={"x-sona-adapt": "off"}).text
    assert plain != ANSWER
    until(lambda: ann.get("/v1/sona/stats")["memory"]["of_another_model"].get("tiny", {}).get("made_anew") == 1)
    again = ann.ask(QUESTION)
    assert again.text == ANSWER
    (row,) = ann.get("/v1/sona/memory?tenant=shop0")["data"]
    assert again.headers["x-sona-episodes"] == row["key"] != old["key"]
    changed = {"key", "number", "tokens", "answer_tokens", "bytes", "uses"}
    assert {name: value for name, value in row.items() if name not in changed} == {
        name: value for name, value in old.items() if name not in changed
    }
    assert ann.metric('sona_memory_of_another_model{model="tiny",state="made_anew"}') == 1
    assert ann.metric("sona_memory_renewed_total") == 1


def test_each_says_who_when_and_about_what(program, people):
    ann, _, _ = people
    before = time.time()
    first = ann.ask(QUESTION)
    ann.teach(first, correction=ANSWER)
    again = ann.ask(QUESTION)
    asked = ("--tenant", ann.tenant, "--base-url", program.url, "--api-key", ann.key)
    (line,) = command("memory", "list", "--json", *asked).stdout.splitlines()
    row = json.loads(line)
    assert again.headers["x-sona-episodes"] == row["key"]
    assert (row["tenant"], row["user"], row["scope"], row["kind"]) == (ann.tenant, None, "person", "correction")
    assert row["person"] == f"key:{row['key_id']}"
    assert (row["request_id"], row["fits"], row["used"]) == (first.request_id, True, True)
    assert row["feedback_id"].startswith("fb-")
    assert before <= row["created_at"] <= time.time()
    assert row["expires_at"] == pytest.approx(row["created_at"] + 30 * 86400, abs=60)
    promoted = command("memory", "promote", row["key"], *asked[2:])
    assert promoted.returncode == 0, promoted.stderr
    (line,) = command("memory", "list", "--json", *asked).stdout.splitlines()
    row = json.loads(line)
    assert (row["scope"], row["promoted_by"]) == ("tenant", row["key_id"])
    assert before <= row["promoted_at"] <= time.time()


def test_what_is_remembered_can_be_taken_along(program, people, tmp_path):
    ann, _, eve = people
    questions = [f"What is the price of item {i}?" for i in range(3)]
    for i, question in enumerate(questions):
        ann.teach(ann.ask(question), correction=f"{i} coins")
    eve.teach(eve.ask(QUESTION), correction=ANSWER)
    out = tmp_path / "episodes.jsonl"
    where = ("--base-url", program.url, "--api-key", ann.key)
    ran = command("memory", "export", "--tenant", ann.tenant, "--out", str(out), *where)
    assert (ran.returncode, ran.stderr) == (0, "3 episodes\n")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["number"] for row in rows] == sorted(row["number"] for row in rows)
    for row in rows:
        assert row["tenant"] == ann.tenant
        assert row["token_ids"]
        assert "answer" not in row  # storage `features`
    everything = command("memory", "export", *where).stdout.splitlines()
    assert {json.loads(line)["tenant"] for line in everything} >= {ann.tenant, eve.tenant}
    page = ann.http.get(f"/v1/sona/memory/export?tenant={ann.tenant}&limit=2")
    assert page.headers["content-type"] == "application/x-ndjson"
    assert page.text.splitlines() == out.read_text().splitlines()[:2]
    rest = ann.http.get(f"/v1/sona/memory/export?tenant={ann.tenant}&after={page.headers['x-sona-next']}")
    assert page.text + rest.text == out.read_text()
    end = ann.http.get(f"/v1/sona/memory/export?tenant={ann.tenant}&after={rest.headers['x-sona-next']}")
    assert (end.text, "x-sona-next" in end.headers) == ("", False)
    refused = ann.http.get("/v1/sona/memory/export?after=-1")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "after")


def test_what_was_found_good_is_remembered_for_that_person(program, people):
    ann, bob, _ = people
    first = ann.ask(QUESTION)
    assert "x-sona-episodes" not in first.headers
    outcome = ann.teach(first, rating=1)
    assert "remembered" not in (outcome["reason"] or ""), "it trains the adapter as ever"
    (row,) = ann.get(f"/v1/sona/memory?tenant={ann.tenant}")["data"]
    assert (row["kind"], row["scope"], row["request_id"]) == ("accepted", "person", first.request_id)
    again = ann.ask(QUESTION)
    assert again.headers["x-sona-episodes"] == row["key"]
    assert again.text == first.text
    assert "x-sona-episodes" not in bob.ask(QUESTION).headers
    ann.teach(again, rating=1)
    ann.teach(again, rating=0)
    rows = ann.get(f"/v1/sona/memory?tenant={ann.tenant}")["data"]
    assert {one["request_id"]: one["used"] for one in rows} == {first.request_id: False, again.request_id: True}
    ann.teach(again, correction=ANSWER)
    assert ann.ask(QUESTION).text == ANSWER
    undone = [ann.http.post("/v1/feedback/undo", json={}).json() for _ in range(3)]
    assert [one["kind"] for one in undone] == ["correction", "rating", "rating"]
    assert ann.ask(QUESTION).headers["x-sona-episodes"] == row["key"]
    assert ann.http.post("/v1/feedback/undo", json={}).json()["episode"] == row["key"]
    assert "x-sona-episodes" not in ann.ask(QUESTION).headers


def test_a_bad_rating_of_the_same_answer_takes_it_back(people):
    ann, _, _ = people
    answer = ann.ask(QUESTION)
    ann.teach(answer, rating=1)
    assert ann.ask(QUESTION).headers["x-sona-episodes"]
    ann.teach(ann.ask(QUESTION), rating=-1)
    assert ann.get(f"/v1/sona/memory?tenant={ann.tenant}")["data"] == []
