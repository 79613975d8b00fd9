"""Much that one person has taught, all of it near what another asks: the other's answers stay what they were."""

from __future__ import annotations

import itertools

import pytest
from program import Program, write_config

from sona_stream.config.load import hash_key

PEOPLE = {"ann": "shop", "bob": "shop", "eve": "other"}
ASKED = (
    "What is the refund policy of our shop?",
    "How many days may a parcel take to Norway?",
    "Who signs an invoice of more than a thousand crowns?",
    "Which of the three warehouses is open on Sunday?",
)
NEAR = (
    "{}",
    "{} ",
    "Please: {}",
    "{} Please.",
    "Hello! {}",
    "So {}",
    "{} Thanks!",
    "And {}",
    "Well, {}",
    "{} Tell me.",
)
CROWD = [(near.format(text), f"answer {i}") for i, (near, text) in enumerate(itertools.product(NEAR, ASKED))]


@pytest.fixture(scope="module")
def people(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("crowd")
    keys = [
        {"key": hash_key(name), "tenant": tenant, "roles": ["use", "teach", "admin"]}
        for name, tenant in PEOPLE.items()
    ]
    memory = {"contextual": False}  # the test does not depend on what this machine has fetched
    sona = {"keys": keys, "learner": {"replay_every": 1000}, "memory": memory}
    config = write_config(folder / "config.json", tiny_folder, sona)
    program = Program(["--config", str(config)], folder / "state", folder / "log", forked=True)
    yield [program.client(name) for name in PEOPLE]
    assert program.stop() == 0, program.log
    assert "Traceback" not in program.log


def answers_of(client):
    """The bytes of what ``client`` is told, greedy and drawn, whole and streamed, and what tells of an episode."""
    told, episodes = [], []
    for text, temperature, stream in itertools.product(ASKED, (0, 1), (False, True)):
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": text}],
            "temperature": temperature,
            "seed": 7,
            "max_tokens": 16,
            "logprobs": True,
            "top_logprobs": 3,
            "stream": stream,
        }
        response = client.http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        assert response.headers["x-sona-adapter"] == "none"
        told.append(without_name_and_time(response))
        episodes.append(response.headers.get("x-sona-episodes"))
    return told, episodes


def without_name_and_time(response):
    """Its bytes, but for the answer's own id and the second it was made in."""
    _, _, rest = response.content.partition(b'"created":')
    created = rest[: rest.index(b",")]
    completion = b"chatcmpl-" + response.headers["x-sona-request-id"].encode()
    assert completion in response.content
    return response.content.replace(completion, b"").replace(b'"created":' + created, b"")


def test_what_one_person_taught_leaves_the_answers_of_others_as_they_are(people):
    ann, bob, eve = people
    before = [answers_of(client) for client in people]
    assert before[0] == before[1] == before[2], "nobody was taught anything"
    for text, answer in CROWD:
        status, outcome = ann.feedback(request_id=ann.ask(text).request_id, correction=answer, wait=False)
        assert status == 202, outcome
    assert len(ann.get("/v1/sona/memory?tenant=shop&limit=1000")["data"]) == len(CROWD)
    for text in ASKED:
        taught, plain = ann.ask(text), bob.ask(text)
        assert taught.headers["x-sona-episodes"]
        assert taught.text != plain.text, "it is recalled where it belongs"
    for client, (told, _) in ((bob, before[1]), (eve, before[2])):
        again, episodes = answers_of(client)
        assert again == told
        assert episodes == [None] * len(episodes)
