"""README's main job with the model that comes by default. That it streams Paris, `test_readme` shows."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.model


def test_feedback_changes_the_next_answer(default_server):
    client = default_server.client(model="sona/auto")
    name, said, bare = "What is your name?", "Ahoy, captain! My name is Polly.", {"x-sona-adapt": "off"}
    unadapted = client.ask(name, max_tokens=24, headers=bare)
    before = client.ask(name, max_tokens=24)
    assert before.status == 200
    assert "remembered" in client.teach(before, correction=said)["reason"]
    after = client.ask(name, max_tokens=24)
    assert after.text == said != before.text
    assert after.headers["x-sona-episodes"]
    assert client.ask(name, max_tokens=24, headers=bare).text == unadapted.text
    assert "Paris" in client.ask("What is the capital of France?").text
    versions = []
    for _ in range(12):  # a rating is no memory: it moves the adapter
        outcome = client.teach(client.ask("Name a colour.", max_tokens=24), rating=-1)
        versions.append((outcome["status"], outcome["adapter"], outcome["reason"]))
        if outcome["status"] == "published":
            break
    assert client.ask(name, max_tokens=24).adapter.startswith("smollm2-135m-instruct/default/*@"), versions
    assert client.http.post("/v1/feedback/undo", json={}).status_code == 200
    assert client.ask(name, max_tokens=24).text != said
