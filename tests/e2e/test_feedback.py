"""Feedback through the front door: which answer it names, what becomes of it, and what it is refused for."""

from __future__ import annotations

import pytest
from program import until


def test_each_kind_of_id_names_the_answer(tenant):
    answer = tenant.ask(headers={"x-request-id": "from-a-header"}, metadata={"request_id": "from-metadata"})
    for name in (answer.request_id, answer.body["id"], "from-a-header", "from-metadata"):
        status, outcome = tenant.feedback(request_id=name, rating=-1, wait=True)
        assert status == 200, outcome
        assert outcome["request_id"] == answer.request_id


def test_a_judged_answer_gets_a_version_and_the_next_answer_shows_it(tenant):
    before = tenant.ask()
    assert before.adapter == "none"
    outcome = tenant.teach(before, rating=-1)
    assert outcome["status"] == "published", outcome
    after = tenant.ask()
    assert after.adapter == outcome["adapter"]
    assert after.version == 1


def test_corrections_change_the_answer_towards_the_better_one(tenant):
    before = tenant.ask()
    for _ in range(24):
        assert tenant.teach(before, correction="the lazy dog")["status"] == "published"
    after = tenant.ask()
    assert not any(word in before.text for word in ("the", "lazy", "dog"))
    assert any(word in after.text for word in ("the", "lazy", "dog"))


def test_an_id_that_names_two_answers_is_a_conflict(tenant):
    first, second = (tenant.ask(headers={"x-request-id": "twice"}) for _ in range(2))
    status, error = tenant.feedback(request_id="twice", rating=1)
    assert status == 409
    assert "x-sona-request-id" in error["error"]["message"]
    for answer in (first, second):
        assert tenant.feedback(request_id=answer.request_id, rating=0.5)[0] == 200


def test_unknown_and_foreign_answers_look_alike(shared, tenant):
    answer = tenant.ask(headers={"x-request-id": "private"})
    stranger = shared.client("key63")
    unknown = stranger.feedback(request_id="req-nobody", rating=1)
    for name in (answer.request_id, answer.body["id"], "private"):
        assert stranger.feedback(request_id=name, rating=1) == unknown
    assert unknown[0] == 404
    assert tenant.get("/v1/sona/stats")["learner"]["served"].get("tiny/t63/*") is None


def test_the_same_idempotency_key_counts_once(tenant):
    answer = tenant.ask()
    said = {"request_id": answer.request_id, "rating": -1, "idempotency_key": "once"}
    _, first = tenant.feedback(**said)
    assert first["duplicate"] is False
    for headers in ({}, {"idempotency-key": "once"}):
        status, again = tenant.feedback(headers=headers, **said)
        assert status == 200
        assert again == {**first, "duplicate": True}
    assert tenant.ask().version == 1
    status, error = tenant.feedback(**{**said, "rating": 1})
    assert status == 409, error


def test_metrics_have_a_range_and_a_direction(tenant):
    answer = tenant.ask()
    for value in (0, 6, "five"):
        status, error = tenant.feedback(request_id=answer.request_id, metric_name="stars", value=value)
        assert status == 400
        assert "1 to 5" in error["error"]["message"]
    status, error = tenant.feedback(request_id=answer.request_id, metric_name="hearts", value=1)
    assert status == 400
    assert "stars" in error["error"]["message"]
    assert tenant.teach(answer, metric_name="stars", value=1)["status"] == "published"
    second = tenant.ask("another one")
    assert tenant.teach(second, metric_name="seconds", value=10)["status"] == "published"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"rating": 2}, "rating"),
        ({"rating": 1, "correction": "x"}, "exactly one"),
        ({}, "exactly one"),
        ({"ratng": 1}, "did you mean 'rating'"),
        ({"correction": ""}, "correction"),
        ({"metric_name": "stars"}, "value"),
    ],
)
def test_wrong_feedback_is_refused_by_name(tenant, body, named):
    status, error = tenant.feedback(request_id=tenant.ask(max_tokens=1).request_id, **body)
    assert status == 400
    assert named in error["error"]["message"]


def test_without_wait_it_is_taken_at_once_and_learned_soon(tenant):
    answer = tenant.ask()
    status, outcome = tenant.feedback(request_id=answer.request_id, rating=-1, wait=False)
    assert (status, outcome["status"]) == (202, "queued")
    until(lambda: tenant.ask(max_tokens=1).version == 1)


def test_a_judgement_as_expected_publishes_nothing_and_says_why(tenant):
    outcome = tenant.teach(tenant.ask(), rating=0)
    assert outcome["status"] == "accepted"
    assert outcome["adapter"] is None
    assert outcome["reason"]


def test_a_request_may_refuse_to_be_learned_from(tenant):
    answer = tenant.ask(headers={"x-sona-learn": "off"})
    assert tenant.teach(answer, rating=-1)["status"] == "skipped"
    assert tenant.ask().adapter == "none"


def test_feedback_on_an_answer_that_is_still_streaming(tenant):
    with tenant.http.stream(
        "POST",
        "/v1/chat/completions",
        json={"model": "tiny", "messages": [{"role": "user", "content": "fox"}], "max_tokens": 64, "stream": True},
    ) as response:
        lines = response.iter_lines()
        next(lines)
        status, outcome = tenant.feedback(request_id=response.headers["x-sona-request-id"], rating=-1)
        assert status == 200, outcome
        assert list(lines)[-2:] == ["data: [DONE]", ""]
