"""Dispatch, bodies, keys and roles, health, models, embeddings, administration, metrics, lifespan."""

import asyncio
import threading

import pytest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from server_clients import Asked, ask, chat, chat_bytes
from server_fakes import FakeServices, forever

from sona_stream.config.load import hash_key
from sona_stream.config.settings import KeySettings, SonaSettings
from sona_stream.errors import NotReady, StateError
from sona_stream.events import Principal
from sona_stream.server import create_app
from sona_stream.server.auth import _say_nameless

CHAT = "/v1/chat/completions"


def error_of(reply):
    body = reply.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    return body


async def test_paths_and_methods(app):
    assert error_of(await ask(app, "GET", "/nowhere"))["code"] == "not_found"
    assert "/v1/chat/completions" in error_of(await ask(app, "POST", "/chat/completions", {}))["message"]
    reply = await ask(app, "GET", CHAT)
    assert (reply.status, reply.headers[b"allow"]) == (405, b"POST")
    error_of(reply)
    reply = await ask(app, "DELETE", "/v1/models")
    assert (reply.status, reply.headers[b"allow"]) == (405, b"GET, HEAD")


@pytest.mark.parametrize("path", ["/health", "/health/liveness", "/v1/models", "/metrics", "/v1/sona/stats"])
async def test_head_is_get_without_its_body(app, path):
    got, head = await ask(app, "GET", path), await ask(app, "HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers[b"content-type"] == got.headers[b"content-type"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b'{"model": "m1"}', "messages"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "model"),
        (chat_bytes(user={"id": 9}), "user"),
        (b'{"model": "\xff"}', None),
    ],
)
async def test_bad_bodies_name_their_field(app, body, param):
    reply = await ask(app, "POST", CHAT, body)
    assert reply.status == 400
    found = error_of(reply)
    assert found["type"] == "invalid_request_error"
    if param:
        assert param in (found["param"] or "") or param in found["message"]


async def test_what_a_backend_may_take_is_left_to_it(app, services):
    body = chat_bytes(temperature=9, max_tokens=-1)
    assert (await ask(app, "POST", CHAT, body)).status == 200
    (request,) = services.pipeline.requests
    assert (request.body, request.sampling.temperature) == (body, 9)
    assert [param for param, _ in request.objections] == ["temperature", "max_tokens"]


async def test_bodies_have_a_limit():
    app = create_app(FakeServices(sona=SonaSettings(max_body_mb=1)))
    mib = 1 << 20
    announced = await ask(app, "POST", CHAT, b"{}", {"content-length": str(mib + 1)})
    asked = Asked(app, "POST", CHAT, chunks=[b"x" * (mib // 2)] * 3)
    for reply in (announced, await asked.run()):
        assert reply.status == 413
        assert "max_body_mb" in error_of(reply)["message"]
    whole = chat_bytes(padding="x" * (mib // 2))
    assert (await Asked(app, "POST", CHAT, chunks=[whole[:9], b"", whole[9:]]).run()).status == 200
    assert (await ask(app, "POST", CHAT, whole, {"content-encoding": "gzip"})).status == 400


KEYS = {
    "sk-use": KeySettings(key=hash_key("sk-use"), tenant="a", roles=("use",), name="alice"),
    "sk-teach": KeySettings(key=hash_key("sk-teach"), tenant="a", roles=("use", "teach")),
    "sk-admin": KeySettings(key=hash_key("sk-admin"), tenant="ops", roles=("admin",)),
    "sk-gate": KeySettings(key=hash_key("sk-gate"), tenant="b", roles=("use", "teach"), trusted_gateway=True),
}


@pytest.fixture
def keyed():
    return FakeServices(sona=SonaSettings(keys=tuple(KEYS.values())))


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("POST", CHAT, "use"),
        ("POST", "/v1/completions", "use"),
        ("POST", "/v1/embeddings", "use"),
        ("GET", "/v1/models", "use"),
        ("GET", "/v1/models/m1", "use"),
        ("POST", "/v1/feedback", "teach"),
        ("GET", "/v1/sona/stats", "admin"),
        ("GET", "/v1/sona/patterns", "admin"),
        ("GET", "/v1/sona/adapters", "admin"),
        ("POST", "/v1/sona/adapters/rollback", "admin"),
        ("POST", "/v1/sona/freeze", "admin"),
        ("POST", "/v1/sona/thaw", "admin"),
    ],
)
async def test_who_may_do_what(keyed, method, path, role):
    app = create_app(keyed)
    reply = await ask(app, method, path, b"{}")
    assert (reply.status, reply.headers[b"www-authenticate"]) == (401, b"Bearer")
    assert error_of(reply)["code"] == "invalid_api_key"
    for wrong in ({"authorization": "Bearer sk-wrong"}, {"authorization": "Basic sk-use"}, {"x-api-key": ""}):
        assert (await ask(app, method, path, b"{}", wrong)).status == 401
    for key, settings in KEYS.items():
        for headers in (
            {"authorization": f"Bearer {key}"},
            {"x-api-key": key},
            {"authorization": f"bearer  {key}"},
        ):
            status = (await ask(app, method, path, b"{}", headers)).status
            assert (status == 403) == (role not in settings.roles), (key, status)
            assert status != 401
    assert "freeze" not in keyed.log or path == "/v1/sona/freeze"


@pytest.mark.parametrize("path", ["/health", "/health/liveliness", "/health/readiness", "/metrics"])
async def test_probes_need_no_key(keyed, path):
    assert (await ask(create_app(keyed), "GET", path)).status == 200


async def test_our_own_keys_go_to_no_upstream(keyed):
    app = create_app(keyed)
    for headers in ({"authorization": "Bearer sk-use"}, {"x-api-key": "sk-use"}):
        await ask(app, "POST", CHAT, chat(), {**headers, "api-key": "sk-use", "cookie": "c"})
        assert keyed.pipeline.requests.pop().headers == ()


async def test_only_a_trusted_gateway_names_the_end_user(keyed, caplog):
    _say_nameless.cache_clear()
    app = create_app(keyed)

    async def principal(key, headers=(), **fields):
        await ask(app, "POST", CHAT, chat(**fields), {"authorization": f"Bearer {key}", **dict(headers)})
        return keyed.pipeline.requests[-1].principal

    asserted = {"x-sona-user": "eve"}
    assert await principal("sk-use", asserted, user="eve") == Principal(
        tenant="a", key_id="alice", roles=frozenset({"use"})
    )
    assert (await principal("sk-gate", asserted)).user == "eve"
    assert (await principal("sk-gate", user="bob")).user == "bob"
    assert (await principal("sk-gate", asserted, user="bob")).user == "eve"
    assert (await principal("sk-gate")).user is None
    assert (await principal("sk-gate")).tenant == "b"
    assert [record.message for record in caplog.records if "names no end user" in record.message] != []


async def test_without_keys_pages_of_other_hosts_are_refused(services, app, keyed):
    for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example", "http://localhost.evil", "[::"):
        reply = await ask(app, "POST", "/v1/sona/freeze", b"", {"origin": origin})
        assert reply.status == 403, origin
    assert services.log == []
    for origin in ("http://localhost:3000", "http://127.0.0.1", "http://[::1]:80"):
        assert (await ask(app, "POST", "/v1/sona/freeze", b"", {"origin": origin})).status == 200
    headers = {"origin": "https://app.example", "authorization": "Bearer sk-use"}
    assert (await ask(create_app(keyed), "GET", "/v1/models", headers=headers)).status == 200


async def test_models():
    app = create_app(FakeServices(models=("m1", "m1", "org/m2", "*")))
    listed = (await ask(app, "GET", "/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["sona/auto", "m1", "org/m2"]
    assert listed["object"] == "list"
    assert (await ask(app, "GET", "/v1/models/org/m2")).json()["id"] == "org/m2"
    assert (await ask(app, "GET", "/v1/models/sona/auto")).json()["object"] == "model"
    assert (await ask(app, "GET", "/v1/models/none")).status == 404


async def test_embeddings_pass_through(services, app):
    body = b'{"model": "m1", "input":  "x"}'
    reply = await ask(app, "POST", "/v1/embeddings", body)
    assert (reply.status, reply.body) == (200, body)
    assert reply.headers[b"x-upstream"] == b"1"
    assert reply.headers[b"content-length"] == b"%d" % len(body)
    assert reply.headers[b"x-sona-model"] == b"m1"
    for body, status in (({"model": "x"}, 404), ({}, 400), ({"model": "sona/auto"}, 400), (b"[", 400)):
        assert (await ask(app, "POST", "/v1/embeddings", body)).status == status


async def test_leaving_cancels_an_embeddings_call(services, app):
    cancelled = asyncio.Event()

    async def hang():
        try:
            await forever()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    services.embedding = hang
    asked = Asked(app, "POST", "/v1/embeddings", b'{"model": "m1"}')
    running = asyncio.create_task(asked.run())
    await asyncio.sleep(0.01)
    asked.leave()
    await asyncio.wait_for(running, 1)
    assert cancelled.is_set()
    assert asked.reply.status is None


async def test_readiness(services, app):
    services.not_ready = NotReady("the model m1 is loading")
    reply = await ask(app, "GET", "/health/readiness")
    assert (reply.status, error_of(reply)["message"]) == (503, "the model m1 is loading")
    assert (await ask(app, "GET", "/health/liveness")).status == 200
    services.not_ready = None
    assert (await ask(app, "GET", "/health/readiness")).status == 200


async def test_administration(services, app):
    assert (await ask(app, "GET", "/v1/sona/stats")).json() == {"trajectories": 7, "quality": None}
    assert (await ask(app, "GET", "/v1/sona/patterns")).json()["data"] == [{"id": "p7"}]
    assert (await ask(app, "GET", "/v1/sona/adapters")).json()["data"][0]["version"] == 3
    assert (await ask(app, "GET", "/v1/sona/adapters?tenant=acme")).json()["data"][0]["key"] == "m1/acme/CodeGen"
    path, key = "/v1/sona/adapters/rollback", "m1/default/CodeGen"
    assert (await ask(app, "POST", path, {"key": key, "version": 0})).json() == {"key": key, "version": 0}
    assert (await ask(app, "POST", path, {"key": "other", "version": 1})).status == 404
    for wrong in (
        {},
        {"key": key},
        {"key": key, "version": -1},
        {"key": key, "version": True},
        {"key": 1, "version": 1},
    ):
        assert (await ask(app, "POST", path, wrong)).status == 400
    assert error_of(await ask(app, "POST", path, {"key": key, "version": 1, "x": 1}))["param"] == "x"
    assert (await ask(app, "POST", "/v1/sona/freeze")).json() == {"frozen": True}
    assert (await ask(app, "POST", "/v1/sona/thaw")).json() == {"frozen": False}
    assert services.log == [("rollback", key, 0), "freeze", "thaw"]


async def test_metrics(services, app):
    await ask(app, "POST", CHAT, chat())
    await ask(app, "POST", CHAT, chat(stream=False))
    text = (await ask(app, "GET", "/metrics")).body.decode()
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["sona_routing_decisions_total", "CodeGen", "m1", "pattern"] == 2
    assert found["gen_ai_server_request_duration_seconds_count", "", "chat", "m1"] == 2
    assert found["gen_ai_server_time_to_first_token_seconds_count", "chat", "m1"] == 2
    assert found["gen_ai_server_time_per_output_token_seconds_count", "chat", "m1"] == 2
    assert found["gen_ai_client_token_usage_sum", "chat", "m1", "output"] == 4
    assert found["sona_in_flight_requests",] == 0
    openmetrics = await ask(app, "GET", "/metrics", headers={"accept": "application/openmetrics-text"})
    assert openmetrics.headers[b"content-type"].startswith(b"application/openmetrics-text")


async def test_what_belongs_to_the_event_loop_is_asked_there(services, app):
    asked_in = []

    class Live:
        def collect(self):
            asked_in.append(threading.current_thread())
            yield GaugeMetricFamily("sona_live", "As of now.", value=7)

    services.live = (Live(),)
    for accept in ("text/plain", "application/openmetrics-text"):
        said = await ask(app, "GET", "/metrics", headers={"accept": accept})
        assert "sona_live 7.0" in said.body.decode()
        assert "sona_in_flight_requests 0.0" in said.body.decode()
    assert asked_in == [threading.main_thread()] * 2


async def test_labels_are_bounded():
    services = FakeServices()
    app = create_app(services)
    for i in range(200):
        services.pipeline.steps = [NotReady("x")]
        await ask(app, "POST", CHAT, chat(model=f"made-up-{i}"))
    text = (await ask(app, "GET", "/metrics")).body.decode()
    assert "made-up" not in text
    from sona_stream.server.metrics import Bounded

    bounded = Bounded(["a"], limit=3)
    assert [bounded(value) for value in "abcda"] == ["a", "b", "c", "other", "a"]


async def lifespan(app):
    inbox, sent = asyncio.Queue(), asyncio.Queue()
    task = asyncio.create_task(app({"type": "lifespan"}, inbox.get, sent.put))
    inbox.put_nowait({"type": "lifespan.startup"})
    return task, inbox, await sent.get(), sent


async def test_lifespan(services, app):
    task, inbox, message, sent = await lifespan(app)
    assert message["type"] == "lifespan.startup.complete"
    assert services.log == ["startup"]
    inbox.put_nowait({"type": "lifespan.shutdown"})
    assert (await sent.get())["type"] == "lifespan.shutdown.complete"
    assert services.log == ["startup", "shutdown"]
    await task


async def test_the_shutdown_waits_for_answers_that_are_being_cleaned_up(services, app):
    task, inbox, _, sent = await lifespan(app)
    app.begin("req-1")
    inbox.put_nowait({"type": "lifespan.shutdown"})
    await asyncio.sleep(0.05)
    assert services.log == ["startup"]
    app.end("req-1")
    await sent.get()
    assert services.log == ["startup", "shutdown"]
    await task


async def test_a_failed_start_is_kept_for_whoever_started(services, app):
    services.start_error = StateError("the state folder is held by another process")
    task, _, message, _ = await lifespan(app)
    assert message["type"] == "lifespan.startup.failed"
    assert app.startup_error is services.start_error
    await task


async def test_without_keys_a_name_of_others_is_no_way_in(app, keyed):
    """DNS rebinding: a page of evil.example makes its own name mean 127.0.0.1, and is then of the same origin."""
    for host in ("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example:80"):
        for path in ("/v1/sona/stats", "/v1/models"):
            reply = await ask(app, "GET", path, headers={"host": host})
            assert reply.status == 403, host
            assert "sona.keys" in error_of(reply)["message"]
    for host in ("localhost:8080", "127.0.0.1", "[::1]:80", "box", "host.docker.internal:8080", "a.localhost", ""):
        assert (await ask(app, "GET", "/v1/models", headers={"host": host})).status == 200, host
    headers = {"host": "llm.example", "authorization": "Bearer sk-use"}
    assert (await ask(create_app(keyed), "GET", "/v1/models", headers=headers)).status == 200


@pytest.mark.parametrize(
    "body", [b'{"key": "\\ud800", "version": 1}', b'{"\\udfff": 1}', b'{"key": "\xed\xa0\x80"}']
)
async def test_half_a_character_is_refused(app, body):
    reply = await ask(app, "POST", "/v1/sona/adapters/rollback", body)
    assert reply.status == 400
    assert "Unicode" in error_of(reply)["message"]


async def test_no_version_is_that_large(app):
    body = {"key": "m1/default/CodeGen", "version": 1 << 63}
    assert error_of(await ask(app, "POST", "/v1/sona/adapters/rollback", body))["param"] == "version"


async def test_embeddings_are_not_parsed_for_their_models_name(app, services):
    """Megabytes of token ids must not hold up everybody's streams."""
    for body in (
        b'{"input": [' + b"[" * 5000 + b"]" * 5000 + b'], "model": "m1"}',
        b'{"model": "m\\u0031", "input": 1e999}',
    ):
        assert (await ask(app, "POST", "/v1/embeddings", body)).status in (200, 400)
    for body in (b"[]", b'{"model": 1}', b'{"model": ""}', b'{"model": "\\ud800"}', b"{", b"\xff"):
        assert (await ask(app, "POST", "/v1/embeddings", body)).status == 400, body


async def test_a_stop_while_the_last_bytes_are_written_tells_nobody_twice(caplog):
    """A client that reads slowly holds the last write; the answer has begun, so nothing new may begin."""
    for stream in (True, False):
        asked = Asked(create_app(FakeServices()), "POST", CHAT, chat_bytes(stream=stream))
        stuck, begun = asyncio.Event(), []

        async def send(message, stuck=stuck, begun=begun):
            begun.append(message["type"])
            assert begun.count("http.response.start") == 1
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                stuck.set()
                await forever()

        asked.send = send
        task = asyncio.create_task(asked.run())
        await asyncio.wait_for(stuck.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 5)
