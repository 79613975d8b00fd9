"""The routes under /v1/sona, the guard, the tenants' middleware, over fakes of vLLM's client and application."""

import asyncio
import functools
import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
from fake_vllm_server import KEY, MODEL, Client, D, FakeApp, T, Worker, build, environ
from hypothesis import given
from hypothesis import strategies as st

from sona_stream.lora import LoraWeights, LowRank, TokenSignal
from sona_stream_adapters.vllm_plugin import codec, codec_computed
from sona_stream_adapters.vllm_plugin.encoding import Encoder
from sona_stream_adapters.vllm_plugin.endpoint import SonaEndpoint, plugin
from sona_stream_adapters.vllm_plugin.engines import Engines
from sona_stream_adapters.vllm_plugin.guard import stripped
from sona_stream_adapters.vllm_plugin.messages import Unanswered
from sona_stream_adapters.vllm_plugin.middleware import Tenants
from sona_stream_adapters.vllm_plugin.settings import SettingsError


async def call(app, method, path, body=b"", headers=(), chunk=1 << 20):
    """(status, headers, body) of one ASGI call; the body comes in pieces."""
    path, _, query = path.partition("?")
    parts = [body[i : i + chunk] for i in range(0, len(body), chunk)] or [b""]
    messages = [{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts]
    pairs = [(name.lower().encode(), value.encode()) for name, value in dict(headers).items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": pairs}
    sent = []

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(one.get("body", b"") for one in sent[1:])


def control(**headers):
    return {"x-sona-control": KEY, **headers}


def error(body):
    return json.loads(body)["error"]


def weights(seed=0):
    rng = np.random.default_rng(seed)
    A, B = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, D), (D, 1)))
    return LoraWeights(LowRank(A, B))


def blob(fingerprint="toy"):
    arrays, facts = codec.weights_parts(weights())
    return codec.pack(arrays, {**facts, "fingerprint": fingerprint})


@pytest.fixture
async def app():
    return await build(Worker())


CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


async def chat(app, headers=(), **fields):
    status, _, body = await call(
        app, "POST", "/v1/chat/completions", json.dumps({**CHAT, **fields}).encode(), headers
    )
    return status, body


# ---- who may


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-sona-control": "wrong"},
        {"authorization": "Bearer wrong"},
        {"x-sona-control": ""},
        {"authorization": KEY},
    ],
)
@pytest.mark.parametrize(
    "route", ["PUT adapters?key=k&version=1", "GET info", "GET captures?rid=r", "POST gradient"]
)
async def test_nobody_gets_in_without_the_key(app, headers, route):
    method, path = route.split()
    status, _, body = await call(app, method, f"/v1/sona/{path}", blob(), headers)
    assert (status, error(body)["type"]) == (401, "invalid_control_key")
    assert app.worker.put_log == []


@pytest.mark.parametrize("headers", [{"x-sona-control": KEY}, {"authorization": f"Bearer {KEY}"}])
async def test_the_key_opens(app, headers):
    status, _, body = await call(app, "PUT", "/v1/sona/adapters?key=k&version=3", blob(), headers)
    assert (status, json.loads(body)["ok"]) == (200, True)
    assert app.worker.put_log == [("k", 3)]
    status, _, body = await call(app, "GET", "/v1/sona/info", b"", headers)
    assert json.loads(body)["instance"] == app.worker.instance


# ---- what is wrong is named


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("PUT", "adapters?version=1", b"", 400, "key"),
        ("PUT", "adapters?key=k&version=-1", b"", 400, "version"),
        ("PUT", "adapters?key=k&version=1", b"not tensors", 400, "safetensors"),
        ("PUT", "adapters?key=k&version=1", blob("another"), 400, "another"),
        ("GET", "captures?rid=nobody", b"", 410, "SONA_VLLM_RING_TOKENS"),
        ("POST", "encode", b"{}", 400, "prompt_ids"),
        ("POST", "encode", b"[]", 400, "JSON object"),
        ("POST", "encode", b'{"prompt_ids": [1], "answer_ids": [99]}', 400, "vocabulary of 13"),
        ("POST", "encode", b'{"prompt_ids": [1], "answer_ids": []}', 400, "answer_ids"),
        ("POST", "encode", b'{"prompt_ids": [1], "answer": 3}', 400, "answer"),
        ("POST", "encode", b'{"prompt_ids": [1], "answer_ids": [1], "temperature": -1}', 400, "temperature"),
        ("POST", "encode", json.dumps({"prompt_ids": [1] * 200, "answer_ids": [1] * 57}).encode(), 400, "256"),
        ("POST", "gradient", codec.pack({}, {}), 400, "handles"),
        ("POST", "evaluate", codec.pack({}, {"handles": ["x"]}), 400, "tokens"),
        ("POST", "curvature", codec.pack({}, {"handles": ["x"], "tokens": [4]}), 410, "gone"),
        ("PUT", "episodes", b"", 400, "key"),
        ("POST", "hidden_space", b"", 405, "GET"),
        ("GET", "nothing", b"", 404, "adapters"),
        ("POST", "info", b"", 405, "GET"),
    ],
)
async def test_a_refusal_names_the_field(app, method, path, body, status, words):
    told, _, answer = await call(app, method, f"/v1/sona/{path}", body, control())
    assert told == status, answer
    assert words in error(answer)["message"]


async def test_a_body_beyond_its_limit_is_not_read_to_its_end():
    app = await build(Worker(), environ(SONA_VLLM_ADAPTER_MB="1"))
    status, _, body = await call(app, "PUT", "/v1/sona/adapters?key=k&version=1", bytes(20 << 20), control())
    assert status == 413
    assert str((1 << 20) + (16 << 20)) in error(body)["message"]


async def test_an_engine_that_is_gone_is_told_as_away(app):
    async def fails(*_):
        raise RuntimeError("the engine is dead")

    app.mounts["/v1/sona"].engines._client.collective_rpc = fails
    status, _, body = await call(app, "GET", "/v1/sona/info", b"", control())
    assert (status, error(body)["type"]) == (503, "engine_away")


@pytest.mark.parametrize("value", ["", "short", "ünicode-ünicode-ü"])
def test_a_key_that_is_none_ends_the_start(value):
    with pytest.raises(SettingsError, match="SONA_VLLM_KEY"):
        SonaEndpoint({"SONA_VLLM": "1", "SONA_VLLM_KEY": value})


async def test_inert_unless_enabled(monkeypatch):
    monkeypatch.delenv("SONA_VLLM", raising=False)
    endpoint, app = plugin(), FakeApp(Worker())
    endpoint.attach_router(app)
    await endpoint.init_state(None, None, SimpleNamespace())
    assert app.mounts == {}
    assert app.app == app._routes


async def test_a_server_without_an_engine_answers_503():
    endpoint, app = SonaEndpoint(environ()), FakeApp(Worker())
    endpoint.attach_router(app)
    await endpoint.init_state(None, None, SimpleNamespace(served_model_name=None, model="m"))
    status, _, _ = await call(app, "GET", "/v1/sona/info", b"", control())
    assert status == 503


# ---- an answer that is encoded, and does not come to its end


def encoder(worker, generate=None, context=None):
    client = Client(worker)
    if generate is not None:
        client.generate = functools.partial(generate, client.generate)
    return Encoder(client, Engines(client), params=dict, max_tokens=context)


async def test_an_answer_may_fill_the_context():
    worker, context = Worker(), Client.model_config.max_model_len
    for room in (0, 1):
        answer = [1 + i % 5 for i in range(context - 2 - room)]
        blob = await encoder(worker, context=context).encode({"prompt_ids": [1, 2], "answer_ids": answer}, {})
        capture = codec.capture_from(*codec.unpack(blob), hidden_dim=D)
        assert (capture.prompt_ids.tolist(), capture.token_ids.tolist()) == ([1, 2], answer)
    with pytest.raises(Unanswered, match=f"have {context + 1} tokens; the model's context is {context}$"):
        await encoder(worker, context=context).encode(
            {"prompt_ids": [1, 2, 3], "answer_ids": [1] * (context - 2)}, {}
        )


ASKED = {"prompt_ids": [1, 2], "answer_ids": [3, 4], "rid": "r"}


async def test_nothing_stays_of_an_encoding_that_is_cancelled():
    worker, reading = Worker(), asyncio.Event()

    async def generate(original, *args):
        async for one in original(*args):
            reading.set()
            await asyncio.Event().wait()
            yield one

    task = asyncio.create_task(encoder(worker, generate).encode(ASKED, {}))
    await reading.wait()
    assert "r" in worker.toy.captures
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert worker.toy.captures == {}


async def test_nothing_stays_of_an_encoding_that_fails(monkeypatch):
    worker = Worker()

    async def refuses(original, *args):
        async for _ in original(*args):
            raise ValueError("the engine says no")
        yield

    with pytest.raises(Unanswered, match="the engine says no"):
        await encoder(worker, refuses).encode(ASKED, {})
    assert worker.toy.captures == {}
    monkeypatch.setattr("sona_stream_adapters.vllm_plugin.encoding._TRIES", 2)
    worker.capture_ = lambda rid, hidden: {"state": "running", "reason": ""}
    with pytest.raises(Unanswered, match="was not captured"):
        await encoder(worker).encode(ASKED, {})
    assert worker.toy.captures == {}

    def away(rid):
        raise RuntimeError("the engine is dead")

    async def dies(original, *args):
        async for _ in original(*args):
            worker.release_ = away
            raise KeyError("what went wrong first")
        yield

    with pytest.raises(KeyError, match="what went wrong first"):
        await encoder(worker, dies).encode(ASKED, {})


async def test_the_warm_up_leaves_nothing_and_stops_nobody():
    worker = Worker()
    await encoder(worker).warm_up()
    assert worker.toy.captures == {}
    assert worker.calls == ["sona_release"]


# ---- the guard

BINDING = {"sona": "m/victim/*", "sona_version": 1, "sona_episodes": ["e"], "mine": 1}


async def test_only_the_key_binds(app):
    await chat(app, vllm_xargs=BINDING)
    assert app.seen[-1]["vllm_xargs"] == {"mine": 1}
    status, body = await chat(app, {"x-sona-control": "wrong"}, vllm_xargs=BINDING)
    assert (status, error(body)["type"]) == (401, "invalid_control_key")
    assert len(app.seen) == 1
    await chat(app, control(), vllm_xargs=BINDING)
    assert app.seen[-1]["vllm_xargs"] == BINDING


async def test_another_engine_start_is_told(app):
    status, body = await chat(app, control(**{"x-sona-instance": "the-one-before"}))
    assert (status, error(body)["type"]) == (409, "instance_changed")
    status, _ = await chat(app, control(**{"x-sona-instance": app.worker.instance}))
    assert status == 200


async def test_a_tenant_behind_the_model_is_dropped(app):
    await chat(app, model=f"{MODEL}@victim")
    await chat(app, model="org/other@rev2")
    assert [one["model"] for one in app.seen] == [MODEL, "org/other@rev2"]


async def test_what_nobody_binds_passes_byte_for_byte(app):
    body = json.dumps(CHAT, indent=3).encode() + b"  \n"
    seen = []

    async def inner(scope, receive, send):
        seen.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app.app._app = inner
    await call(app, "POST", "/v1/chat/completions", body, chunk=7)
    assert seen == [body]


def holds(value):
    if isinstance(value, dict):
        for name, one in value.items():
            if name in ("vllm_xargs", "extra_args") and isinstance(one, dict):
                assert not any(key.lower().startswith("sona") for key in one)
            holds(one)
    elif isinstance(value, list):
        for one in value:
            holds(one)


names = st.sampled_from(["vllm_xargs", "extra_args", "sona", "sona_rid", "SONA", "model", "x", "sampling_params"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.just("sona"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(names, values, max_size=4), st.sampled_from(["utf-8", "utf-16", "utf-32"]), st.booleans())
def test_no_spelling_slips_through(value, encoding, escaped):
    text = json.dumps(value)
    if escaped:  # JSON may spell every letter of a name
        text = text.replace("sona", "\\u0073\\u006fna").replace("SONA", "\\u0053ONA")
    body = text.encode(encoding)
    cleaned, changed = stripped(body)
    if not changed:
        assert cleaned is body
    holds(json.loads(cleaned))


def test_a_name_that_comes_twice():
    cleaned, changed = stripped(b'{"vllm_xargs": {"sona": "a"}, "vllm_xargs": {"mine": 1}}')
    assert changed
    assert json.loads(cleaned) == {"vllm_xargs": {"mine": 1}}


def test_forms_and_what_cannot_be_read():
    form = b'--x\r\nname="vllm_xargs"\r\n\r\n{"sona": "k"}\r\n--x--\x00'
    with pytest.raises(Unanswered):
        stripped(form, multipart=True)
    assert stripped(form.replace(b"sona", b"mine"), multipart=True)[1] is False
    with pytest.raises(Unanswered):
        stripped(b'{"vllm_xargs": {"sona": ')
    assert stripped(b"sonata in plain words")[1] is False


# ---- tenants without a proxy


def hashed(key):
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def tenants(app, tmp_path):
    path = tmp_path / "tenants.json"
    path.write_text(json.dumps({"keys": {hashed("alice-key"): "alice", hashed("both"): ["alice", "bo/b"]}}))
    return Tenants(app, environ(SONA_VLLM_TENANTS=str(path))), path


def bearer(key):
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    ("key", "model", "bound"),
    [
        ("alice-key", MODEL, f"{MODEL}/alice/*"),
        ("alice-key", f"{MODEL}@alice", f"{MODEL}/alice/*"),
        ("both", f"{MODEL}@bo/b", f"{MODEL}/bo%2Fb/*"),
        ("both", MODEL, None),
        ("unknown", MODEL, None),
        ("unknown", f"{MODEL}@alice", None),
    ],
)
async def test_the_key_says_which_tenant(app, tenants, key, model, bound):
    for xargs in ({}, {"vllm_xargs": {"sona": "toy/victim/*", "mine": 2}}):
        await chat(tenants[0], bearer(key), model=model, **xargs)
        assert app.seen[-1]["model"] == MODEL
        told = app.seen[-1].get("vllm_xargs") or {}
        assert told.get("sona") == bound
        assert told.get("mine") == (2 if xargs else None)


async def test_a_key_may_not_ask_as_somebody_else(tenants):
    status, body = await chat(tenants[0], bearer("both"), model=f"{MODEL}@eve")
    assert (status, error(body)["param"]) == (403, "model")


async def test_the_file_is_read_again_and_a_broken_one_changes_nothing(app, tenants):
    middleware, path = tenants
    middleware._file._looked = float("-inf")
    path.write_text("{")
    await chat(middleware, bearer("alice-key"))
    assert app.seen[-1]["vllm_xargs"]["sona"] == f"{MODEL}/alice/*"
    path.write_text(json.dumps({"keys": {hashed("new"): "carol"}, "adapter": "own/{tenant}"}))
    middleware._file._looked = float("-inf")
    await chat(middleware, bearer("new"))
    assert app.seen[-1]["vllm_xargs"]["sona"] == "own/carol"


@pytest.mark.parametrize("text", ["[]", '{"keys": {"plain-key": "a"}}', '{"keys": {}, "adapter": "x"}', None])
def test_a_file_that_is_none_ends_the_start(tmp_path, text):
    path = tmp_path / "t.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match="SONA_VLLM_TENANTS"):
        Tenants(None, environ(SONA_VLLM_TENANTS=str(path)))


# ---- several engines


class ManyEngines(Client):
    """vLLM's client with data parallelism."""

    def __init__(self, workers):
        super().__init__(workers[0])
        outer = self
        self.engine_core = SimpleNamespace(core_engines=[b"0", b"1"])

        async def all_of(name, method, timeout, args, kwargs):  # noqa: ASYNC109 - as vLLM has it
            assert name == "collective_rpc"
            return [[getattr(worker, method)(*args)] for worker in workers]

        async def one_of(name, method, timeout, args, kwargs, *, engine):  # noqa: ASYNC109
            return [getattr(workers[int(engine)], method)(*args)]

        self.engine_core.call_utility_all_async, self.engine_core._call_utility_async = all_of, one_of
        outer.workers = workers


@pytest.fixture
async def parallel():
    workers = [Worker(), Worker()]
    return await build(workers[0], client=ManyEngines(workers)), workers


async def test_an_adapter_goes_to_every_engine(parallel):
    app, workers = parallel
    await call(app, "PUT", "/v1/sona/adapters?key=k&version=1", blob(), control())
    assert [worker.put_log for worker in workers] == [[("k", 1)]] * 2
    _, _, body = await call(app, "GET", "/v1/sona/info", b"", control())
    info = json.loads(body)
    assert info["engines"] == 2
    assert info["instance"] not in [worker.instance for worker in workers]
    before = info["instance"]
    workers[1].instance = "again"
    _, _, body = await call(app, "GET", "/v1/sona/info", b"", control())
    assert json.loads(body)["instance"] != before


async def test_captures_of_two_engines_are_one_batch(parallel):
    app, workers = parallel
    for i, worker in enumerate(workers):
        for j in range(2):
            worker.toy.answer(f"r{i}{j}", [1 + i, 2 + j])
    handles, captures = [], []
    for rid in ("r00", "r10", "r01", "r11"):
        _, _, body = await call(app, "GET", f"/v1/sona/captures?rid={rid}&hidden=1", b"", control())
        capture = codec.capture_from(*codec.unpack(body), hidden_dim=D)
        handles.append(capture.handle)
        captures.append(capture)
    signal = TokenSignal(weights(), [np.full(T, i - 1.5, np.float32) for i in range(4)], 0.2, (0.5, 2.0))
    arrays, facts = codec_computed.signal_parts(signal)
    for i, capture in enumerate(captures):
        arrays[f"logprobs_{i}"] = capture.logprobs
    asked = codec.pack(arrays, {**facts, "handles": handles})
    status, headers, body = await call(app, "POST", "/v1/sona/gradient", asked, control())
    assert (status, headers[b"content-type"]) == (200, b"application/vnd.safetensors")
    gradient = codec_computed.gradient_from(*codec.unpack(body))
    whole = await workers[0].toy.gradient(captures, signal)
    np.testing.assert_allclose(gradient.micro_B, whole.micro_B, rtol=1e-5)
    assert gradient.tokens == whole.tokens
    for name in ("loss", "mean_kl_to_base", "mean_logprob"):
        assert getattr(gradient, name) == pytest.approx(getattr(whole, name), rel=1e-6)
    told = {"handles": handles, "tokens": [T] * 4}
    arrays, facts = codec.weights_parts(weights())
    _, _, body = await call(app, "POST", "/v1/sona/evaluate", codec.pack(arrays, {**facts, **told}), control())
    evaluation, whole = (
        codec_computed.evaluation_from(*codec.unpack(body), 4),
        await workers[0].toy.evaluate(captures, weights()),
    )
    for one, other in zip(evaluation.logprobs, whole.logprobs, strict=True):
        np.testing.assert_array_equal(one, other)
    assert evaluation.mean_kl_to_base == pytest.approx(whole.mean_kl_to_base, rel=1e-6)
    assert evaluation.max_kl_to_base == whole.max_kl_to_base
    old, new = codec.weights_parts(weights(1), "old."), codec.weights_parts(weights(2), "new.")
    asked = codec.pack({**old[0], **new[0]}, {**old[1], **new[1], **told})
    _, _, body = await call(app, "POST", "/v1/sona/predicted_kl", asked, control())
    kl = await workers[0].toy.predicted_kl(captures, weights(1), weights(2))
    assert json.loads(body)["kl"] == pytest.approx(kl, rel=1e-6)
    _, _, body = await call(app, "POST", "/v1/sona/curvature", codec.pack({}, told), control())
    curvature, whole = codec_computed.curvature_from(*codec.unpack(body)), await workers[0].toy.curvature(captures)
    np.testing.assert_allclose(curvature.scores, whole.scores, rtol=1e-5)
    assert curvature.tokens == 2 * T
    asked = codec.pack({}, {"handles": [*handles, "lost"], "tokens": [T] * 5})
    status, _, body = await call(app, "POST", "/v1/sona/curvature", asked, control())
    assert (status, error(body)["gone"]) == (410, ["lost"])


async def test_engines_that_serve_different_models_are_reported(parallel):
    app, workers = parallel
    workers[1].toy.fingerprint = "other"
    _, _, body = await call(app, "GET", "/v1/sona/info", b"", control())
    assert any("different models" in one for one in json.loads(body)["problems"])
