"""README's main job with the model that comes by default. That it streams Paris, `test_readme` shows."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.model


def test_feedback_changes_the_next_answer(default_server):
    client = default_server.client(model="sona/auto")
    name, bare = "What is your name?", {"x-sona-adapt": "off"}
    unadapted = client.ask(name, max_tokens=24, headers=bare)
    before = client.ask(name, max_tokens=24)
    assert before.status == 200
    versions, after = [], before
    for _ in range(12):
        outcome = client.teach(after, correction="Ahoy, captain! My name is Polly.")
        versions.append((outcome["status"], outcome["adapter"], outcome["reason"]))
        after = client.ask(name, max_tokens=24)
        if after.text != before.text:
            break
    assert after.text != before.text, versions
    assert after.adapter.startswith("smollm2-135m-instruct/default/*@")
    assert after.text != unadapted.text
    assert client.ask(name, max_tokens=24, headers=bare).text == unadapted.text
    assert "Paris" in client.ask("What is the capital of France?").text
