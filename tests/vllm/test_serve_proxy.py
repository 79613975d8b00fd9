"""A real `vllm serve`, alone and behind a real `sona-stream serve`: control, learning, restarts.

The tests share one server and run in this order: the last ones start it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from hook_meddler import NAME, HookMeddler
from program import QUICK, until
from tiny_model import save_tiny_model
from vllm_serve import KEY, SERVED, VllmServe

from sona_stream.config.load import hash_key
from sona_stream.config.settings import Deployment, SonaSettings
from sona_stream.errors import HostError
from sona_stream.events import AdapterRef, Delta, EpisodeRef, Request
from sona_stream.lora import LoraWeights, LowRank, TokenSignal
from sona_stream_adapters.vllm import create_backend
from sona_stream_adapters.vllm_plugin import codec

D = 128
SIZES = {
    "hidden_size": D,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}


@pytest.fixture(scope="module")
def meddler(tmp_path_factory):
    return HookMeddler(tmp_path_factory.mktemp("meddler"))


@pytest.fixture(scope="module")
def server(model_folder, meddler, tmp_path_factory, request):
    if request.config.getoption("--runner") != "v1":
        pytest.skip("the interpreter of the second runner is not for servers")
    made = VllmServe(tmp_path_factory.mktemp("serve") / "log")
    made.start(model_folder, plugins=f"sona,sona_http,{NAME}", **meddler.environment)
    yield made
    code = made.stop()
    assert code == 0, made.text[-4000:]
    assert "disabled itself" not in made.text


@pytest.fixture(scope="module")
def proxy(server, tmp_path_factory):
    """`sona-stream serve` in front; two tenants, and a key that names end users."""
    from program import Program

    folder = tmp_path_factory.mktemp("proxy")
    params = {
        "model": f"vllm/{SERVED}",
        "api_base": server.base,
        "control_key": "os.environ/CONTROL",
        "timeout": 60,
        "stream_timeout": 3,
    }
    keys = [
        {"key": hash_key(name), "tenant": name, "roles": ["use", "teach", "admin"]} for name in ("alice", "bob")
    ]
    sona = {**QUICK, "keys": keys, "health": {"interval": 0.5}}
    entry = {"model_name": "m", "litellm_params": params}
    path = folder / "config.yaml"
    path.write_text(json.dumps({"model_list": [entry], "sona": sona}))
    program = Program(["--config", str(path)], folder / "state", folder / "log", CONTROL=KEY)
    yield program
    assert program.stop() == 0, program.log
    assert "Traceback" not in program.log
    assert KEY not in program.log


@pytest.fixture(scope="module")
def alice(proxy):
    return proxy.client("alice", model="m")


@pytest.fixture(scope="module")
def bob(proxy):
    return proxy.client("bob", model="m")


def weights(seed, size=0.4):
    """Moves hidden states by less than their own length, which is where the server cuts."""
    rng = np.random.default_rng(seed)
    A = (rng.standard_normal((2, D)) / np.sqrt(D)).astype(np.float32)
    return LoraWeights(LowRank(A, (size * rng.standard_normal((D, 2))).astype(np.float32)))


def blob(one, fingerprint):
    arrays, facts = codec.weights_parts(one)
    return codec.pack(arrays, {**facts, "fingerprint": fingerprint})


def control(server, method, path, **options):
    return httpx.request(
        method, f"{server.base}/sona/{path}", headers={"x-sona-control": KEY}, timeout=60, **options
    )


def chat(server, *, headers=None, tokens=16, **fields):
    body = {
        "model": SERVED,
        "messages": [{"role": "user", "content": "hello there"}],
        "temperature": 0,
        "max_tokens": tokens,
        "return_token_ids": True,
        **fields,
    }
    return httpx.post(f"{server.base}/chat/completions", json=body, headers=headers, timeout=60)


def ids_of(answer):
    return answer.json()["choices"][0]["token_ids"]


TRUSTED = {"x-sona-control": KEY}

# ---- alone


def test_the_hook_is_there(server):
    info = control(server, "GET", "info").json()
    assert info["problems"] == []
    assert info["disabled"] == ""
    assert (info["hidden_dim"], info["vocab_size"], info["runner"]) == (D, 320, "v1")


def test_only_the_control_key_binds_and_writes(server):
    fingerprint = control(server, "GET", "info").json()["fingerprint"]
    data = blob(weights(0), fingerprint)
    for headers in ({}, {"x-sona-control": "wrong"}, {"authorization": "Bearer wrong"}):
        refused = httpx.put(f"{server.base}/sona/adapters?key=k&version=1", content=data, headers=headers)
        assert refused.status_code == 401
    assert control(server, "PUT", "adapters?key=k&version=1", content=data).status_code == 200
    bare = ids_of(chat(server))
    bound = chat(server, headers=TRUSTED, vllm_xargs={"sona": "k"})
    assert ids_of(bound) != bare
    assert ids_of(chat(server, vllm_xargs={"sona": "k"})) == bare
    assert ids_of(chat(server, model=f"{SERVED}@k")) == bare
    assert chat(server, headers={"x-sona-control": "wrong"}, vllm_xargs={"sona": "k"}).status_code == 401
    assert control(server, "DELETE", "adapters?key=k").json()["dropped"] == 1


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        (lambda one: LowRank(np.full_like(one.lora_A, np.nan), one.lora_B), 400, "finite"),
        (lambda one: LowRank(one.lora_A[:, :5].copy(), one.lora_B[:5].copy()), 400, "128"),
        (lambda one: LowRank(np.tile(one.lora_A, (40, 1)), np.tile(one.lora_B, (1, 40))), 400, "MAX_RANK"),
    ],
)
def test_a_bad_adapter_is_refused_and_the_server_lives(server, change, status, words):
    fingerprint = control(server, "GET", "info").json()["fingerprint"]
    bad = LoraWeights(change(weights(0).micro))
    answer = control(server, "PUT", "adapters?key=bad&version=1", content=blob(bad, fingerprint))
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
    assert control(server, "GET", "adapters").json()["adapters"] == []
    assert chat(server).status_code == 200


def test_an_adapter_of_another_model_is_refused(server):
    answer = control(server, "PUT", "adapters?key=bad&version=1", content=blob(weights(0), "sha256:another"))
    assert answer.status_code == 400
    assert "sha256:another" in answer.json()["error"]["message"]


def test_a_body_beyond_the_limit_is_refused(server):
    answer = control(server, "PUT", "adapters?key=big&version=1", content=bytes(100 << 20))
    assert answer.status_code == 413


# ---- as a host


def request(name, text="hello there", adapter=None, tokens=24):
    body = {
        "model": "m",
        "stream": True,
        "temperature": 0,
        "max_tokens": tokens,
        "messages": [{"role": "user", "content": text}],
    }
    return Request(
        id=name,
        endpoint="chat.completions",
        model="m",
        body=json.dumps(body).encode(),
        stream=True,
        adapter=adapter,
    )


def backend_of(server):
    params = {"control_key": KEY}
    entry = Deployment(model_name="m", provider="vllm", upstream_model=SERVED, api_base=server.base, params=params)
    return create_backend(entry, SonaSettings())


async def streamed(backend, asked, each=None):
    """(head, token ids); ``each(ids so far)`` is awaited at every chunk."""
    head, ids = None, []
    async with backend(asked) as events:
        async for event in events:
            head = head or event
            if isinstance(event, Delta):
                ids += [token for piece in event.pieces for token in piece.token_ids]
                if each is not None:
                    await each(ids)
    return head, ids


async def pieces(backend, asked):
    """The answer's text, a token each."""
    async with backend(asked) as events:
        return [one.text async for event in events if isinstance(event, Delta) for one in event.pieces]


def cosine(one, other):
    a, b = (np.concatenate([g.micro_A.ravel(), g.micro_B.ravel()]).astype(np.float64) for g in (one, other))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


_kept = {}


async def test_captures_are_what_was_streamed_and_late_ones_teach_the_same(server):
    async with backend_of(server) as backend:
        await backend.probe()
        host, w = backend.host, weights(1)
        await host.put_adapter("m/a/*", 3, w)
        ref = AdapterRef(key="m/a/*", version=3)
        head, ids = await streamed(backend, request("c1", adapter=ref))
        capture = await host.capture("c1")
        assert capture.token_ids.tolist() == ids
        assert capture.prompt_ids.tolist() == list(head.prompt_ids)
        assert capture.adapter_versions.tolist() == [3] * len(ids)
        signal = TokenSignal(w, [np.linspace(-1, 1, len(ids), dtype=np.float32)], 0.2, (0.0, 2.0))
        now = await host.gradient([capture], signal)
        late = await host.encode(capture.prompt_ids, capture.token_ids, temperature=0.0, weights=w)
        np.testing.assert_allclose(late.logprobs, capture.logprobs, atol=1e-4)
        assert cosine(now, await host.gradient([late], signal)) > 0.9999
        evaluation = await host.evaluate([capture], w)
        np.testing.assert_allclose(evaluation.logprobs[0], capture.logprobs, atol=1e-4)
        curvature = await host.curvature([capture])
        assert (curvature.tokens, curvature.constant.shape, curvature.contrast) == (len(ids), (D,), None)
        elsewhere = await host.encode((0,), list(range(5, 60)), hidden=True)
        assert elsewhere.hidden.shape == (len(elsewhere), D)
        contrast = (await host.curvature([capture], elsewhere.hidden)).contrast
        assert abs(float((elsewhere.hidden @ contrast).mean())) < 0.2
        with pytest.raises(HostError, match="elsewhere"):
            await host.curvature([capture], np.ones((3, D + 1), np.float32))
        _kept.update(capture=capture, signal=signal, gradient=now, ids=ids, weights=w)


async def test_a_stop_string_ends_the_capture_too(server):
    """vLLM's front end finds it; the engine draws on until it hears of that."""
    async with backend_of(server) as backend:
        await backend.probe()
        _, free = await streamed(backend, request("free", tokens=40))
        whole = await pieces(backend, request("text", tokens=40))
        stop = "".join(whole)[len("".join(whole[:12])) :][:3]
        asked = request("stopped", tokens=400)
        body = json.loads(asked.body) | {"stop": [stop]}
        _, ids = await streamed(backend, dataclasses.replace(asked, body=json.dumps(body).encode()))
        capture = await backend.host.capture("stopped")
        assert capture.token_ids.tolist() == ids == free[: len(ids)]
        assert 1 < len(ids) < 30


async def _swapped(backend, name, pause, meddler):
    """(captured versions, ids, tokens that were drawn when the new version was sent and when it had been taken).
    Until then the engine is slow, so that it is far from the answer's end.
    """
    link, host, at = backend._link, backend.host, []

    async def drawn():
        (stats,) = (await link.json("GET", "stats"))["engines"]
        return stats["captured_tokens"] - before

    async def swap(ids):
        if len(ids) >= 12 and not at:
            await asyncio.sleep(pause)
            at.append(await drawn())
            await host.put_adapter("m/swap/*", 2, weights(3))
            at.append(await drawn())
            slow.close()

    before = 0
    before = await drawn()
    await host.put_adapter("m/swap/*", 1, weights(2))
    asked = request(name, adapter=AdapterRef(key="m/swap/*", version=1), tokens=450)
    with contextlib.ExitStack() as slow:
        slow.enter_context(meddler.slow())
        _, ids = await streamed(backend, asked, swap)
    return (await host.capture(name)).adapter_versions.tolist(), ids, *at


@pytest.mark.parametrize("pause", [0.0, 0.3])
async def test_a_swap_takes_effect_while_the_answer_streams(server, meddler, pause):
    """From the first token drawn after the engine has taken it, however far behind its client reads: where that is
    the engine's own count says, not the clock.
    """
    async with backend_of(server) as backend:
        await backend.probe()
        versions, ids, sent, taken = await _swapped(backend, f"swap-{pause}", pause, meddler)
        await backend.host.drop_adapter("m/swap/*")
        assert versions == sorted(versions)
        assert len(ids) == len(versions)
        assert set(versions) == {1, 2}
        assert sent <= versions.index(2) <= taken


async def test_a_remembered_answer_is_given_to_who_names_it(server):
    answer = [200, 201, 17, 202, 203, 17, 204, 0]
    async with backend_of(server) as backend:
        await backend.probe()
        host, space = backend.host, await backend.host.hidden_space()
        assert space.mean.shape == (D,)
        assert space.version.startswith("reference-1:")
        head, plain = await streamed(backend, request("e0"))
        capture = await host.encode(list(head.prompt_ids), answer, hidden=True)
        await host.put_episode("e", capture.hidden, capture.token_ids, space)
        named = (EpisodeRef(key="e", gate=0.9), EpisodeRef(key="none", gate=1.0))
        _, ids = await streamed(backend, dataclasses.replace(request("e1"), episodes=named))
        assert ids == answer
        assert (await host.capture("e1")).memory.min() > 0.5
        assert (await streamed(backend, request("e2")))[1] == plain
        await host.drop_episode("e")
        assert (await streamed(backend, dataclasses.replace(request("e3"), episodes=named)))[1] == plain


async def test_two_tenants_at_once_get_what_they_get_alone(server):
    async with backend_of(server) as backend:
        await backend.probe()
        refs = []
        for i, name in enumerate(("m/x/*", "m/y/*")):
            await backend.host.put_adapter(name, 1, weights(10 + i))
            refs.append(AdapterRef(key=name, version=1))
        cases = [None, *refs]
        alone = [(await streamed(backend, request(f"alone{i}", adapter=ref)))[1] for i, ref in enumerate(cases)]
        many = [streamed(backend, request(f"many{i}", adapter=cases[i % 3])) for i in range(6)]
        together = [ids for _, ids in await asyncio.gather(*many)]
        assert together == [*alone, *alone]
        assert len({tuple(ids) for ids in alone}) == 3


# ---- behind the proxy


def test_feedback_changes_the_next_answer_and_no_other_tenant(alice, bob):
    before, others = alice.ask(), bob.ask()
    assert (before.adapter, others.adapter) == ("none", "none")
    assert before.text == others.text
    assert alice.teach(before, rating=-1)["status"] == "published"
    for _ in range(12):  # a rating is a hint, a correction says what is wanted
        alice.teach(alice.ask(), correction="a brown fox")
        after = alice.ask()
        assert after.adapter.startswith("m/alice/*@")
        if after.text != before.text:
            break
    assert after.text != before.text
    again = bob.ask(vllm_xargs={"sona": "m/alice/*"})
    assert again.adapter == "none"
    assert again.text == others.text


def test_a_correction_is_encoded_on_the_server(alice):
    assert alice.teach(alice.ask("what is it"), correction="a brown fox")["status"] == "published"


def test_feedback_for_an_evicted_request(server, alice):
    """The ring holds seconds: the server forgets the request, and its kept tokens are encoded again."""
    answer = alice.ask("an answer to be judged late")
    httpx.delete(
        f"{server.base}/sona/captures?rid={answer.request_id}", headers=TRUSTED, timeout=30
    ).raise_for_status()
    assert control(server, "GET", f"captures?rid={answer.request_id}").status_code == 410
    outcome = alice.teach(answer, rating=-1)
    assert outcome["status"] == "published", outcome


def test_the_openai_client_streams(alice):
    stream = alice.openai.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "hello"}], stream=True, max_tokens=8, temperature=0
    )
    chunks = [chunk.choices[0] for chunk in stream if chunk.choices]
    assert "".join(chunk.delta.content or "" for chunk in chunks)
    assert chunks[-1].finish_reason == "length"


# ---- restarts, last


def test_sigterm_with_open_streams_ends_the_streams(server, proxy, alice, meddler):
    """The engine is gone, and the API server says so in its streams, or waits for them in silence: then the proxy
    tells its clients. None of them ends as if it were whole.
    """
    asked = alice.ask()
    _kept.update(text=asked.text, asked=asked.request_id)
    body = {"model": "m", "stream": True, "max_tokens": 480, "temperature": 0}
    begun = threading.Semaphore(0)

    def stream(number):
        messages = [{"role": "user", "content": f"go on with {number}"}]
        url, headers = f"{proxy.url}/v1/chat/completions", {"authorization": "Bearer alice"}
        with httpx.stream("POST", url, json={**body, "messages": messages}, headers=headers, timeout=30) as answer:
            lines = answer.iter_lines()
            first = [next(lines) for _ in range(4)]
            begun.release()
            return "\n".join([*first, *lines])

    with meddler.slow(), ThreadPoolExecutor(8) as threads:
        streams = [threads.submit(stream, number) for number in range(8)]
        for _ in streams:
            assert begun.acquire(timeout=30)
        began = time.monotonic()
        server.signal()
        texts = [one.result() for one in streams]
        assert time.monotonic() - began < 30, "their tokens would take longer"
    assert all('"error"' in text.partition("[DONE]")[0] for text in texts)
    assert server.stop(180) in (0, -2)  # by itself; 0.27 ends by the signal that it sends itself


def test_adapters_are_there_again_before_the_first_request(server, model_folder, alice, bob, tmp_path):
    """And this start has the middleware for those who come without the proxy."""
    hashed = {"sha256:" + hashlib.sha256(name).hexdigest(): name.decode() for name in (b"carol", b"dave")}
    tenants = tmp_path / "tenants.json"
    tenants.write_text(json.dumps({"keys": hashed}))
    status, outcome = alice.feedback(request_id=_kept["asked"], rating=1)
    assert (status, outcome["status"]) == (202, "queued"), outcome
    server.start(
        model_folder,
        "--middleware",
        "sona_stream_adapters.vllm_plugin.middleware.Tenants",
        SONA_VLLM_TENANTS=str(tenants),
    )
    after = alice.ask()
    assert after.adapter.startswith("m/alice/*@")
    assert after.text == _kept["text"]
    assert bob.ask().adapter == "none"
    until(lambda: alice.get("/v1/sona/stats")["learner"]["pending"] == 0, seconds=20)
    status, outcome = alice.feedback(request_id=_kept["asked"], rating=0.5)  # what waited was learned meanwhile
    assert (status, outcome["status"]) == (200, "published"), outcome


async def test_the_gradient_is_the_same_after_a_restart(server):
    async with backend_of(server) as backend:
        await backend.probe()
        assert backend.host.fingerprint == _kept["capture"].fingerprint
        again = await backend.host.gradient([_kept["capture"]], _kept["signal"])
        assert cosine(_kept["gradient"], again) > 0.9999
        assert again.loss == pytest.approx(_kept["gradient"].loss, rel=1e-3)


def test_tenants_without_a_proxy(server):
    fingerprint = control(server, "GET", "info").json()["fingerprint"]
    key = f"{SERVED}/carol/*"
    put = control(
        server, "PUT", "adapters", params={"key": key, "version": 1}, content=blob(weights(4), fingerprint)
    )
    assert put.status_code == 200
    bare = ids_of(chat(server))
    for name, bound in (("carol", True), ("dave", False), ("nobody", False)):
        headers = {"authorization": f"Bearer {name}"}
        assert (ids_of(chat(server, headers=headers)) != bare) == bound
        assert (ids_of(chat(server, headers=headers, vllm_xargs={"sona": key})) != bare) == bound


def test_another_model_of_the_same_width_gets_nothing(server, alice, tmp_path):
    assert server.stop() == 0
    server.start(save_tiny_model(tmp_path / "other", seed=7, **SIZES))
    answer = alice.ask()
    assert answer.adapter == "none"
    problems = until(lambda: alice.get("/v1/sona/stats")["learner"]["problems"], seconds=20)
    assert "m/alice/*" in problems[0]
    assert control(server, "GET", "info").json()["fingerprint"] in problems[0]
    assert control(server, "GET", "adapters").json()["adapters"] == []
    assert alice.ask().adapter == "none"
