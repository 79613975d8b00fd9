"""What an OpenAI client gets from the whole program."""

from __future__ import annotations

import json

import openai
import pytest

QUESTION = [{"role": "user", "content": "the quick brown fox"}]


def test_a_stream_says_what_the_whole_answer_says(tenant):
    whole = tenant.ask()
    assert whole.status == 200
    assert whole.body["usage"]["completion_tokens"] == 16
    chunks = list(
        tenant.openai.chat.completions.create(
            model="tiny", messages=QUESTION, temperature=0, max_tokens=16, stream=True
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.text
    assert len(chunks) > 4
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert len({chunk.id for chunk in chunks}) == 1


def test_every_answer_says_what_was_done(tenant):
    asked = tenant.ask(headers={"x-request-id": "mine"})
    headers = asked.headers
    assert headers["x-sona-model"] == "tiny"
    assert headers["x-sona-adapter"] == "none"
    assert headers["x-sona-reason"] == "named"
    assert headers["x-sona-request-id"].startswith("req-")
    assert headers["x-sona-pattern-type"]
    routed = tenant.ask(model="sona/auto")
    assert routed.headers["x-sona-model"] == "tiny"
    assert routed.headers["x-sona-reason"] != "named"
    assert routed.text == asked.text


def test_completions_and_several_choices(tenant):
    made = tenant.openai.completions.create(model="tiny", prompt="the quick", temperature=0, max_tokens=8)
    assert made.object == "text_completion"
    assert made.choices[0].text
    pieces = tenant.openai.completions.create(
        model="tiny", prompt="the quick", temperature=0, max_tokens=8, stream=True
    )
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == made.choices[0].text
    several = tenant.openai.chat.completions.create(
        model="tiny", messages=QUESTION, n=2, temperature=1.5, seed=3, max_tokens=12
    )
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[0].message.content != several.choices[1].message.content
    assert several.usage.completion_tokens == 24


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_tokens": -1}, "max_tokens must be between 1 and"),
        ({"max_completion_tokens": -1}, "max_completion_tokens must be between 1 and"),
        ({"temperature": 2.5}, "temperature must be between 0 and 2, got 2.5"),
        ({"temperature": "hot"}, "temperature: Expected `float`"),
        ({"logprobs": True, "top_logprobs": 25}, "top_logprobs must be between 0 and 20"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
        ({"logit_bias": {"7": 5}}, "logit_bias must be left out where a model runs here"),
        ({"messages": [{"role": "ipython", "content": "x"}]}, "messages[0].role must be one of"),
    ],
)
def test_a_model_that_runs_here_says_which_limit_it_has(tenant, fields, says):
    refused = tenant.ask(**fields)
    assert refused.status == 400
    error = refused.body["error"]
    assert says in error["message"]
    assert error["message"].startswith(error["param"])


@pytest.mark.parametrize("fields", [{"echo": True}, {"suffix": "z"}, {"best_of": 2}, {"prompt_embeds": "AAAA"}])
def test_what_a_model_that_runs_here_would_pass_over_is_refused(tenant, fields):
    body = {"model": "tiny", "prompt": "the quick", "max_tokens": 2}
    assert tenant.http.post("/v1/completions", json=body).status_code == 200
    refused = tenant.http.post("/v1/completions", json={**body, **fields})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, *fields)
    assert "where a model runs here" in refused.json()["error"]["message"]


def test_stop_ends_before_the_stop_string(tenant):
    whole = tenant.ask().text
    stop = whole[len(whole) // 2 :][:3]
    stopped = tenant.ask(stop=[*"\x01\x02\x03\x04\x05", stop])
    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.body["choices"][0]["finish_reason"] == "stop"


def test_usage_comes_when_it_is_asked_for(tenant):
    chunks = list(
        tenant.openai.chat.completions.create(
            model="tiny", messages=QUESTION, max_tokens=5, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 5
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_an_unknown_model_is_not_found(tenant):
    with pytest.raises(openai.NotFoundError, match="nonsense"):
        tenant.openai.chat.completions.create(model="nonsense", messages=QUESTION)
    with pytest.raises(openai.NotFoundError):
        tenant.openai.models.retrieve("nonsense")
    assert "tiny" in [model.id for model in tenant.openai.models.list()]


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("messages", {"model": "tiny"}),
        ("temperature", {"model": "tiny", "messages": QUESTION, "temperature": 9}),
        ("n", {"model": "tiny", "messages": QUESTION, "n": 0}),
        ("max_tokens", {"model": "tiny", "messages": QUESTION, "max_tokens": "many"}),
    ],
)
def test_a_wrong_field_is_named(tenant, field, body):
    response = tenant.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert field in (error["param"] or "") + error["message"]


def test_what_is_no_json_is_refused_and_the_next_request_is_served(tenant):
    response = tenant.http.post("/v1/chat/completions", content=b"{")
    assert response.status_code == 400
    assert "JSON" in response.json()["error"]["message"]
    assert tenant.ask().status == 200


def test_a_prompt_that_does_not_fit_is_refused_with_the_limit(tenant):
    refused = tenant.ask("naïve " * 4096)
    assert refused.status == 400
    assert "4096" in refused.body["error"]["message"]


def test_health_metrics_and_what_was_learned_can_be_read(shared, tenant):
    assert tenant.http.get("/health/readiness").status_code == 200
    tenant.ask()
    text = tenant.http.get("/metrics").text
    assert "sona_routing_decisions_total{" in text
    assert "gen_ai_server_time_to_first_token_seconds_bucket" in text
    stats = tenant.get("/v1/sona/stats")
    assert stats["learner"]["learning"] == "feedback"
    assert stats["backends"] == {"tiny": ["ready"]}
    patterns = tenant.get("/v1/sona/patterns")["data"]
    assert patterns
    assert {"id", "pattern_type", "cluster_size", "avg_quality", "routes"} <= set(patterns[0])
    json.dumps(patterns, allow_nan=False)
