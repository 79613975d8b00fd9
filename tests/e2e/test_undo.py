"""Undo takes back what a person said last, and never silently anything older."""

from __future__ import annotations

import itertools
import json
import re
import signal
import sqlite3

import pytest
from program import Program, command, until, write_config

from sona_stream.config.load import hash_key

EVERYTHING = ["use", "teach", "admin"]
QUESTION, ANSWER = "What is the refund policy of our shop?", "forty days"
OTHER, OTHERS = "When do we open on Sundays?", "at noon"


def configure(folder, tiny_folder, shops=12, **more):
    """One person for each of some tenants, and a gateway that names its users."""
    keys = [{"key": hash_key(f"ann{n}"), "tenant": f"shop{n}", "roles": EVERYTHING} for n in range(shops)]
    gate = {"key": hash_key("gate"), "tenant": "gated", "roles": EVERYTHING, "trusted_gateway": True}
    sona = {
        "keys": [*keys, gate],
        "user_header": "x-user",
        "learner": {"replay_every": 1000},
        "memory": {"contextual": False},
        "metrics": {"stars": {"min": 1, "max": 5}},
    }
    return write_config(folder / "config.json", tiny_folder, sona | more)


@pytest.fixture(scope="module")
def program(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undo")
    config = ["--config", str(configure(folder, tiny_folder))]
    started = Program(config, folder / "state", folder / "log", forked=True)
    yield started
    started.stop()


@pytest.fixture
def ann(program, shops=itertools.count()):  # noqa: B008
    shop = next(shops)
    client = program.client(f"ann{shop}")
    client.tenant = f"shop{shop}"
    return client


def undo(client, code=200, headers=None, **said):
    reply = client.http.post("/v1/feedback/undo", json=said, headers=headers or {})
    assert reply.status_code == code, reply.text
    return reply.json() if code == 200 else reply.json()["error"]["message"]


def kept(client):
    """Requests of which something is remembered, newest first."""
    return [row["request_id"] for row in client.get(f"/v1/sona/memory?tenant={client.tenant}")["data"]]


def withdrawn(program, tenant):
    """Feedback that no replay of this tenant reads any more, as it is on the disk."""
    with sqlite3.connect(f"file:{program.state}/state.sqlite3?mode=ro", uri=True) as database:
        (data,) = database.execute(
            "SELECT data FROM blobs WHERE name = ?", (f"learner/tiny/{tenant}/*",)
        ).fetchone()
    database.close()
    return json.loads(data)["withdrawn"]


@pytest.mark.parametrize("mistake", [{"rating": -1}, {"rating": 0.2}, {"metric_name": "stars", "value": 2}])
def test_a_later_judgement_goes_first_and_the_correction_stays(program, ann, mistake):
    before = ann.ask(QUESTION)
    ann.teach(before, correction=ANSWER)
    judged = ann.ask(OTHER)
    mistaken = ann.teach(judged, **mistake)
    said = undo(ann)
    assert (said["feedback"], said["request_id"]) == (mistaken["id"], judged.request_id)
    assert (said["episode"], said["returned"], said["adapter"]) == (None, [], mistaken["adapter"])
    assert kept(ann) == [before.request_id], "what is older stays"
    assert ann.ask(QUESTION).text == ANSWER
    assert withdrawn(program, ann.tenant) == [mistaken["id"]], "no replay reads the mistake any more"
    assert mistaken["status"] == "published"
    until(lambda: ann.ask("Tell me a joke").adapter != mistaken["adapter"])
    assert undo(ann)["request_id"] == before.request_id
    assert kept(ann) == []
    until(lambda: ann.ask("Tell me a joke").adapter == "none")
    assert ann.ask(QUESTION).text == before.text, "nothing is left of either"
    assert "no correction of yours" in undo(ann, 404)


def test_undos_in_a_row_walk_back_and_every_answer_is_as_before(ann):
    asked = [f"What is rule number {n} of our house?" for n in range(5)]
    before = {text: ann.ask(text) for text in asked}
    for n, text in enumerate(asked):
        ann.teach(before[text], correction=f"rule {n}")
    for text in reversed(asked):
        assert undo(ann)["request_id"] == before[text].request_id
        assert ann.ask(text).text == before[text].text
    undo(ann, 404)


def test_what_taught_nothing_is_told_and_the_correction_can_be_named(ann):
    before = ann.ask(QUESTION)
    ann.teach(before, correction=ANSWER)
    deaf = ann.ask(OTHER, headers={"x-sona-learn": "off"})
    assert ann.teach(deaf, rating=-1)["status"] == "skipped"
    said = undo(ann, 409)
    for word in (deaf.request_id, before.request_id, "rating", "asked not to be learned from", "/undo"):
        assert word in said
    assert kept(ann) == [before.request_id]
    assert deaf.request_id in undo(ann, 409, request_id=deaf.request_id)
    assert undo(ann, request_id=before.request_id)["kind"] == "correction"
    assert ann.ask(QUESTION).text == before.text
    assert "x-sona-request-id" not in undo(ann, 404, request_id="never")


def test_of_one_request_the_newest_that_can_be(ann):
    answer = ann.ask(QUESTION)
    ann.teach(answer, correction=ANSWER)
    ann.teach(answer, rating=-1)
    assert undo(ann)["kind"] == "rating"
    ann.teach(answer, rating=-1)
    assert [undo(ann, request_id=answer.body["id"])["kind"] for _ in range(2)] == ["rating", "correction"]
    assert ann.ask(QUESTION).text == answer.text


def test_what_was_found_good_before_the_rating_that_is_taken_back_is_used_again(ann):
    answer = ann.ask(QUESTION)
    ann.teach(answer, rating=1)
    assert kept(ann) == [answer.request_id]
    ann.teach(answer, rating=-1)
    assert kept(ann) == []
    said = undo(ann)
    assert kept(ann) == [answer.request_id]
    assert said["returned"] == [row["key"] for row in ann.get(f"/v1/sona/memory?tenant={ann.tenant}")["data"]]
    assert ann.ask(QUESTION).text == answer.text
    assert undo(ann)["returned"] == kept(ann) == []


def test_the_same_correction_twice_takes_two(ann):
    answer = ann.ask(QUESTION)
    ann.teach(answer, correction=ANSWER)
    ann.teach(ann.ask(QUESTION), correction=ANSWER)
    taken = undo(ann)
    assert len(taken["returned"]) == 1
    assert ann.ask(QUESTION).text == ANSWER
    assert [undo(ann)["episode"]] == taken["returned"]
    assert ann.ask(QUESTION).text == answer.text


def test_what_an_admin_gave_to_others_is_the_admins(ann):
    first = ann.ask(OTHER)
    ann.teach(first, correction=OTHERS)
    answer = ann.ask(QUESTION)
    ann.teach(answer, correction=ANSWER)
    key = ann.ask(QUESTION).headers["x-sona-episodes"]
    promoted = ann.http.post("/v1/sona/memory/promote", json={"key": key, "scope": "tenant"})
    assert promoted.status_code == 200
    said = undo(ann, 409)
    assert f"memory forget {key}" in said
    assert first.request_id in said
    assert ann.ask(QUESTION).text == ANSWER
    assert undo(ann, request_id=first.request_id)["kind"] == "correction"
    assert ann.ask(OTHER).text == first.text


def test_what_nobody_waited_for_is_taken_back_for_good(program, ann):
    answers = [ann.ask(f"What is rule number {n} of our house?") for n in range(4)]
    for answer in answers:
        status, _ = ann.feedback(request_id=answer.request_id, rating=-1, wait=False)
        assert status == 202
    taken = [undo(ann) for _ in answers]
    assert [one["request_id"] for one in taken] == [answer.request_id for answer in reversed(answers)]
    assert sorted(withdrawn(program, ann.tenant)) == sorted(one["feedback"] for one in taken)
    undo(ann, 404)


def test_the_model_of_a_judgement_can_be_asked_for(ann):
    answer = ann.ask(QUESTION)
    ann.teach(answer, correction=ANSWER)
    undo(ann, 404, model="other")
    assert undo(ann, model="tiny")["request_id"] == answer.request_id


@pytest.mark.parametrize("storage", ["features", "none"])
def test_behind_a_gateway_everybody_takes_back_their_own(tiny_folder, tmp_path, serve, storage):
    config = str(configure(tmp_path, tiny_folder, shops=1, storage=storage))
    gate = serve("--config", config).client("gate")
    users = [{"x-user": name} for name in ("alice", "bob")]
    asked = [gate.ask(QUESTION, headers=user) for user in users]
    for answer, user in zip(asked, users, strict=True):
        said = {"request_id": answer.request_id, "correction": f"days of {user['x-user']}"}
        assert gate.http.post("/v1/feedback?wait=1", json=said, headers=user).status_code == 200
    assert gate.http.post("/v1/feedback/undo", json={}).status_code == 404, "the gateway itself said nothing"
    assert undo(gate, headers=users[0])["request_id"] == asked[0].request_id
    undo(gate, 404, headers=users[0])
    assert gate.ask(QUESTION, headers=users[1]).text == "days of bob"


def test_a_restart_remembers_what_was_taken_back(tiny_folder, tmp_path, serve):
    config = str(configure(tmp_path, tiny_folder, shops=1))
    program = serve("--config", config)
    ann = program.client("ann0")
    first, second = ann.ask(QUESTION), ann.ask(OTHER)
    ann.teach(first, correction=ANSWER)
    ann.teach(second, correction=OTHERS)
    ann.teach(ann.ask("Tell me a joke"), rating=-1)
    assert [undo(ann)["kind"] for _ in range(2)] == ["rating", "correction"]
    program.stop(signal.SIGKILL)
    ann = serve("--config", config).client("ann0")
    assert ann.ask(QUESTION).text == ANSWER
    assert ann.ask(OTHER).text == second.text
    assert undo(ann)["request_id"] == first.request_id
    assert ann.ask(QUESTION).text == first.text


def test_the_chat_says_what_it_took_back(program, ann):
    lines = f"{QUESTION}\n/fix {ANSWER}\n{OTHER}\n/bad\n/undo\n/undo\n/undo\n/quit\n"
    said = command("chat", "--base-url", program.url, "--api-key", ann.key, "--max-tokens", "8", given=lines)
    printed = said.stdout
    assert printed.index("[taken back: your /bad of 2") < printed.index("[taken back: your /fix of 2")
    assert re.search(r"\[taken back: your /bad of [^;]*; tiny/\w+/\*@1 goes, too\]", printed)
    assert "is forgotten]" in printed
    until(lambda: kept(ann) == [])
