"""README's main job with the model that comes by default."""

from __future__ import annotations

import pytest

from sona_stream.errors import ModelUnavailable
from sona_stream_adapters.local import pull_model

pytestmark = pytest.mark.model

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module", autouse=True)
def model():
    try:
        return pull_model("smollm2-135m-instruct")
    except ModelUnavailable as error:
        pytest.skip(f"the model cannot be had: {error}")


def test_it_streams_paris_and_feedback_changes_the_next_answer(serve):
    program = serve()
    client = program.client(model="sona/auto")
    stream = client.openai.chat.completions.create(model="sona/auto", messages=FRANCE, stream=True)
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    name = "What is your name?"
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
    off = client.ask(name, max_tokens=24, headers={"x-sona-adapt": "off"})
    assert off.text == before.text
    assert "Paris" in client.ask(FRANCE[0]["content"]).text
    assert program.stop() == 0
