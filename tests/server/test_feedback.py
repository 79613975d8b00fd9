"""`POST /v1/feedback`."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_clients import Asked, ask, chat_bytes
from server_fakes import HEAD, FakeServices

from sona_stream.config.load import hash_key
from sona_stream.config.settings import KeySettings, MetricSettings, SonaSettings
from sona_stream.errors import CaptureGone, InvalidRequest
from sona_stream.events import AdapterRef, Delta, FeedbackOutcome, Finish, Piece, Principal
from sona_stream.server import create_app
from sona_stream.server.judgement import parse_judgement

PATH = "/v1/feedback"
METRICS = {
    "stars": MetricSettings(min=1, max=5),
    "latency": MetricSettings(min=0, max=10, direction="lower_is_better"),
}
KEYS = tuple(
    KeySettings(key=hash_key(f"sk-{name}"), tenant=tenant, roles=("use", "teach"), trusted_gateway=gateway)
    for name, tenant, gateway in (("a", "a", False), ("b", "b", False), ("gate", "b", True))
)


@pytest.fixture
def services():
    made = FakeServices(sona=SonaSettings(metrics=METRICS))
    made.store.add("req-1", names=("chatcmpl-u1", "mine"))
    return made


async def tell(app, body, wait=False, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await ask(app, "POST", PATH + ("?wait=1" if wait else ""), body, named)


@pytest.mark.parametrize(
    ("said", "kind", "quality"),
    [
        ({"rating": -1}, "rating", 0.0),
        ({"rating": 0.5}, "rating", 0.75),
        ({"rating": True}, "rating", 1.0),
        ({"rating": False}, "rating", 0.0),
        ({"metric_name": "stars", "value": 4}, "metric", 0.75),
        ({"metric_name": "latency", "value": 2.5}, "metric", 0.75),
        ({"metric_name": "stars", "value": True}, "metric", 1.0),
        ({"correction": "Paris."}, "correction", None),
    ],
)
async def test_three_forms(services, app, said, kind, quality):
    reply = await tell(app, {"request_id": "req-1", **said})
    assert reply.status == 202
    assert reply.json() == {
        "id": services.store.committed[0].id,
        "request_id": "req-1",
        "status": "queued",
        "reason": None,
        "adapter": None,
        "duplicate": False,
    }
    (feedback, wait), *rest = services.feedback.learned
    assert not rest
    assert not wait
    assert (feedback.kind, feedback.quality, feedback.request_id) == (kind, quality, "req-1")
    assert feedback.correction == said.get("correction")
    assert (feedback.tenant, feedback.metric_name) == ("default", said.get("metric_name"))
    assert feedback == services.store.committed[0]


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({}, "rating"),
        ({"rating": 1.01}, "rating"),
        ({"rating": "good"}, "rating"),
        ({"rating": float("nan")}, "rating"),
        ({"rating": float("inf")}, "rating"),
        ({"rating": 10**400}, "rating"),
        ({"rating": 1, "correction": "x"}, "correction"),
        ({"rating": 1, "value": 1}, "value"),
        ({"value": 1}, "rating"),
        ({"metric_name": "stars"}, "value"),
        ({"metric_name": "stars", "value": 6}, "value"),
        ({"metric_name": "stars", "value": "4"}, "value"),
        ({"metric_name": "speed", "value": 1}, "metric_name"),
        ({"correction": "  "}, "correction"),
        ({"correction": 5}, "correction"),
        ({"rating": 1, "request_id": ""}, "request_id"),
        ({"rating": 1, "request_id": 7}, "request_id"),
        ({"rating": 1, "request_id": "x" * 257}, "request_id"),
        ({"rating": 1, "request_id": None}, "request_id"),
        ({"ratng": 1}, "ratng"),
        ({"rating": 1, "idempotency_key": ""}, "idempotency_key"),
    ],
)
async def test_wrong_fields_are_named(services, app, said, param):
    reply = await tell(app, {"request_id": "req-1", **said})
    assert reply.status == 400
    assert reply.json()["error"]["param"] == param
    assert not services.store.committed


async def test_errors_say_what_is_possible(services, app):
    async def said(**body):
        return (await tell(app, {"request_id": "req-1", **body})).json()["error"]["message"]

    assert "latency, stars" in await said(metric_name="speed", value=1)
    assert "from 1 to 5" in await said(metric_name="stars", value=0)
    assert "did you mean 'rating'" in await said(ratng=1)


@settings(max_examples=200, deadline=None)
@given(
    rating=st.floats(-1, 1),
    value=st.floats(1, 5),
    body=st.dictionaries(st.text(max_size=12), st.text(), max_size=1),
)
def test_quality_is_always_in_its_range(rating, value, body):
    judged = parse_judgement({"request_id": "r", "rating": rating}, METRICS, None)
    assert judged.quality == (rating + 1) / 2
    assert 0 <= judged.quality <= 1
    judged = parse_judgement({"request_id": "r", "metric_name": "stars", "value": value}, METRICS, None)
    assert 0 <= judged.quality <= 1
    with pytest.raises(InvalidRequest) as raised:
        parse_judgement(body, METRICS, None)  # never whole: it has no number in it
    assert raised.value.param is not None


@pytest.mark.parametrize("named", ["req-1", "chatcmpl-u1", "mine", "chatcmpl-req-1", "cmpl-req-1"])
async def test_an_answer_has_several_names(services, app, named):
    assert (await tell(app, {"request_id": named, "rating": 1})).json()["request_id"] == "req-1"


async def test_unknown_and_ambiguous(services, app):
    services.store.add("req-2", names=("mine",))
    reply = await tell(app, {"request_id": "mine", "rating": 1})
    assert reply.status == 409
    assert b"req-1" not in reply.body
    assert b"req-2" not in reply.body
    reply = await tell(app, {"request_id": "req-none", "rating": 1})
    assert reply.status == 404
    assert "30 days" in reply.json()["error"]["message"]
    assert not services.store.committed


async def test_other_tenants_and_users_requests_do_not_exist():
    services = FakeServices(sona=SonaSettings(keys=KEYS))
    app = create_app(services)
    services.store.add("req-a", tenant="a", names=("shared",))
    services.store.add("req-b", tenant="b", names=("shared",), user="bob")
    good = {"rating": 1}

    async def status(key, request_id, **headers):
        return await tell(app, {"request_id": request_id, **good}, authorization=f"Bearer sk-{key}", **headers)

    assert (await status("a", "req-a")).status == 202
    foreign, unknown = await status("b", "req-a"), await status("b", "req-x")
    assert (foreign.status, foreign.body) == (unknown.status, unknown.body)
    assert foreign.status == 404
    assert (await status("b", "shared")).json()["request_id"] == "req-b"
    assert (await status("gate", "req-b", x_sona_user="bob")).status == 202
    assert services.store.committed[-1].user == "bob"
    assert (await status("gate", "req-b", x_sona_user="eve")).status == 404
    assert (await status("gate", "req-b")).status == 202
    good["user"] = "eve"
    assert (await status("gate", "req-b")).status == 404
    assert (await status("b", "req-b", x_sona_user="eve")).status == 202, "only a gateway can assert a user"
    assert services.store.committed[-1].user is None


USERS = [(12, "12"), (0, "0"), ("eve", "eve"), ("x" * 300, "x" * 300), (" ", " "), ("", None), (None, None)]


@pytest.mark.parametrize(("sent", "user"), USERS)
async def test_a_user_is_read_as_it_is_in_the_request_that_is_judged(sent, user):
    services = FakeServices(sona=SonaSettings(keys=KEYS))
    app = create_app(services)
    gate = {"authorization": "Bearer sk-gate"}
    undone = []

    async def undo(principal, model, request_id):
        undone.append(principal.user)
        return {}

    services.undo = undo
    assert (await ask(app, "POST", "/v1/chat/completions", chat_bytes(user=sent), gate)).status == 200
    (asked,) = services.pipeline.requests
    services.store.add(asked.id, tenant="b", user=asked.principal.user)
    assert (await tell(app, {"request_id": asked.id, "rating": 1, "user": sent}, **gate)).status == 202
    assert (await ask(app, "POST", "/v1/feedback/undo", {"user": sent}, gate)).status == 200
    assert [asked.principal.user, services.store.committed[-1].user, *undone] == [user] * 3


@pytest.mark.parametrize("sent", [True, 1.5, {"id": 5}, [1]])
async def test_what_is_no_user_is_refused_alike(app, services, sent):
    services.store.add("req-1")
    for path, body in (
        ("/v1/chat/completions", chat_bytes(user=sent)),
        ("/v1/feedback", {"request_id": "req-1", "rating": 1, "user": sent}),
        ("/v1/feedback/undo", {"user": sent}),
    ):
        reply = await ask(app, "POST", path, body)
        assert (reply.status, reply.json()["error"]["param"]) == (400, "user"), path


async def test_waiting_answers_with_the_version_or_the_gates_reason(services, app):
    ref = AdapterRef(key="m1/default/*", version=2)
    services.feedback.answer = lambda f: FeedbackOutcome(feedback_id=f.id, status="published", adapter=ref)
    reply = await tell(app, {"request_id": "req-1", "rating": 1}, wait=True)
    assert (reply.status, reply.json()["status"], reply.json()["adapter"]) == (200, "published", "m1/default/*@2")
    services.feedback.answer = lambda f: FeedbackOutcome(feedback_id=f.id, status="gated", reason="kl 0.9 > 0.5")
    reply = await tell(app, {"request_id": "req-1", "rating": 1}, wait=True)
    assert (reply.status, reply.json()["status"], reply.json()["reason"]) == (200, "gated", "kl 0.9 > 0.5")
    counted = {"kind": "rating", "status": "gated"}
    assert services.registry.get_sample_value("sona_feedback_total", counted) == 1


async def test_late_feedback_names_the_setting(services, app):
    services.feedback.error = CaptureGone("its states are gone; `sona.storage: text` would have kept the text")
    reply = await tell(app, {"request_id": "req-1", "rating": 1}, wait=True)
    assert reply.status == 410
    assert "sona.storage" in reply.json()["error"]["message"]
    assert len(services.store.committed) == 1, "it was durable all the same"


async def test_a_retry_is_learned_from_once(services, app):
    body = {"request_id": "req-1", "rating": 1}
    first = await tell(app, {**body, "idempotency_key": "k1"})
    services.store.outcomes[first.json()["id"]] = FeedbackOutcome(
        feedback_id=first.json()["id"], status="accepted", reason="waits for replay"
    )
    again = await tell(app, body, idempotency_key="k1")
    assert again.json() == {
        **first.json(),
        "status": "accepted",
        "reason": "waits for replay",
        "duplicate": True,
    }
    assert len(services.feedback.learned) == 1
    assert (await tell(app, {**body, "rating": -1}, idempotency_key="k1")).status == 409
    assert (await tell(app, {**body, "idempotency_key": "k1"}, idempotency_key="k2")).status == 400
    assert (await tell(app, body)).json()["duplicate"] is False
    assert (await tell(app, body)).json()["duplicate"] is False


async def test_a_retry_that_waits_gets_the_firsts_outcome(services, app):
    body = {"request_id": "req-1", "rating": 1, "idempotency_key": "k1"}
    first = (await tell(app, body)).json()
    waiting = asyncio.create_task(tell(app, body, wait=True))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    services.store.outcomes[first["id"]] = FeedbackOutcome(feedback_id=first["id"], status="published")
    assert (await waiting).json()["status"] == "published"
    assert (await tell(app, body)).json()["status"] == "published"


async def test_feedback_waits_for_the_answer_it_judges_to_end(services, app):
    let_go = asyncio.Event()
    services.pipeline.steps = [HEAD, Delta(pieces=(Piece(text="a"),)), let_go.wait, Finish()]

    async def recorded():
        services.store.add(services.pipeline.requests[0].id)

    services.pipeline.on_exit = recorded
    asked = Asked(app, "POST", "/v1/chat/completions", chat_bytes())
    running = asyncio.create_task(asked.run())
    await asked.wrote.wait()
    request_id = asked.reply.headers[b"x-sona-request-id"].decode()
    telling = asyncio.create_task(tell(app, {"request_id": request_id, "rating": 1}))
    await asyncio.sleep(0.05)
    assert not telling.done()
    let_go.set()
    assert (await telling).status == 202
    await running


async def test_an_answer_that_goes_on_is_a_conflict_and_nobody_elses_business(monkeypatch):
    monkeypatch.setattr("sona_stream.server.feedback._STILL_ANSWERING_S", 0.05)
    services = FakeServices(sona=SonaSettings(keys=KEYS))
    app = create_app(services)
    let_go = asyncio.Event()
    services.pipeline.steps = [HEAD, Delta(pieces=(Piece(text="a"),)), let_go.wait, Finish()]
    bobs = {"authorization": "Bearer sk-gate", "x-sona-user": "bob"}
    asked = Asked(app, "POST", "/v1/chat/completions", chat_bytes(), bobs)
    running = asyncio.create_task(asked.run())
    await asked.wrote.wait()
    request_id = asked.reply.headers[b"x-sona-request-id"].decode()

    async def told(**headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await ask(app, "POST", PATH, {"request_id": request_id, "rating": 1}, named)

    reply = await told(authorization="Bearer sk-gate", x_sona_user="bob")
    assert reply.status == 409
    assert "still being answered" in reply.json()["error"]["message"]
    assert (await told(authorization="Bearer sk-b")).status == 409, "of the same tenant, and for nobody else"
    assert (await told(authorization="Bearer sk-gate", x_sona_user="eve")).status == 404
    assert (await told(authorization="Bearer sk-a")).status == 404
    assert not services.store.committed
    let_go.set()
    await running


@pytest.mark.parametrize("named", ["mine", "in-body", "chatcmpl-up", "chatcmpl-{}", "cmpl-{}"])
async def test_an_answer_that_goes_on_is_known_by_every_name_that_the_client_has(monkeypatch, named):
    monkeypatch.setattr("sona_stream.server.feedback._STILL_ANSWERING_S", 0.05)
    services = FakeServices()
    app = create_app(services)
    let_go = asyncio.Event()
    first = Delta(raw=b"data: {}\n\n")  # before the upstream's name for it is known
    second = Delta(raw=b"data: {}\n\n", completion_id="chatcmpl-up")
    services.pipeline.steps = [HEAD, first, second, second, let_go.wait, Finish(raw=b"")]
    sent = {"x-request-id": "mine"}
    asked = Asked(app, "POST", "/v1/chat/completions", chat_bytes(metadata={"id": "in-body"}), sent)
    running = asyncio.create_task(asked.run())
    await asked.wrote.wait()
    await asyncio.sleep(0)
    own = services.pipeline.requests[0].id
    judgement = {"request_id": named.format(own), "rating": 1}
    assert (await tell(app, judgement)).status == 409
    services.store.add("req-older", names=("mine",))
    assert (await tell(app, {**judgement, "request_id": "mine"})).status == 409, "not the older one in its place"
    let_go.set()
    await running
    assert (await tell(app, judgement)).status == (202 if named == "mine" else 404), "nothing of it was recorded"
    assert not app.answering._named


async def test_two_running_answers_may_share_a_name():
    app = create_app(FakeServices())
    app.begin("req-1", Principal(tenant="a"), ("shared", "shared"))
    app.begin("req-2", Principal(tenant="b"), ("shared", "req-1"))
    assert {one: whose.tenant for one, whose in app.answering.find("shared").items()} == {
        "req-1": "a",
        "req-2": "b",
    }
    app.end("req-1")
    assert list(app.answering.find("shared")) == list(app.answering.find("req-1")) == ["req-2"]
    app.end("req-1")
    app.end("req-2")
    assert not app.answering
    assert not app.answering._named


@pytest.mark.parametrize(
    "body",
    [
        b'{"request_id": "\\ud800", "rating": 1}',
        b'{"request_id": "req-1", "correction": "Par\\udc00is"}',
        b'{"request_id": "req-1", "rating": 1, "\\ud83d": 1}',
        b'{"request_id": "req-1", "rating": 1, "idempotency_key": "\xed\xa0\x80"}',
    ],
)
async def test_half_a_character_is_refused(services, app, body):
    reply = await ask(app, "POST", PATH, body)
    assert reply.status == 400
    assert "Unicode" in reply.json()["error"]["message"]
    assert services.store.committed == []


async def test_a_correction_has_a_limit(services, app):
    reply = await tell(app, {"request_id": "req-1", "correction": "x" * ((1 << 20) + 1)})
    assert (reply.status, reply.json()["error"]["param"]) == (400, "correction")
    assert (await tell(app, {"request_id": "req-1", "correction": "x" * (1 << 20)})).status == 202


async def test_waiting_for_the_first_one_does_not_hammer_the_store(services, app, monkeypatch):
    said = {"request_id": "req-1", "rating": 1, "idempotency_key": "k"}
    await tell(app, said)
    asked = []

    async def outcome(feedback_id):
        asked.append(feedback_id)

    monkeypatch.setattr(services.store, "outcome", outcome)
    monkeypatch.setattr("sona_stream.server.feedback._FIRST_OUTCOME_S", 0.7)
    assert (await tell(app, said, wait=True)).json()["status"] == "queued"
    assert len(asked) < 10
