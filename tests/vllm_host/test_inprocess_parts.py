"""The engine in this process as far as it goes without vLLM: the door, the options, the link."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from fake_vllm_server import Client, D, T, Worker
from tiny_model import ask

from sona_stream.config.settings import Deployment, SonaSettings
from sona_stream.errors import CaptureGone, ConfigError, HostAway, HostError, PluginError
from sona_stream.events import AdapterRef, Piece
from sona_stream.lora import LoraWeights, LowRank, TokenSignal
from sona_stream_adapters.vllm.engine_link import EngineLink
from sona_stream_adapters.vllm.inprocess import create_backend
from sona_stream_adapters.vllm.inprocess_answers import Answers
from sona_stream_adapters.vllm.inprocess_options import parse_options
from sona_stream_adapters.vllm.meeting import Meeting
from sona_stream_adapters.vllm_plugin.encoding import Encoder
from sona_stream_adapters.vllm_plugin.engines import Engines
from sona_stream_adapters.vllm_plugin.routes import Routes


def deployment(**params):
    return Deployment(model_name="m", provider="vllm_inprocess", upstream_model="x", params=params)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_it_says_what_to_install():
    with pytest.raises(PluginError, match="install `vllm`"):
        create_backend(deployment(), SonaSettings())


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"max_token": 5}, "litellm_params.max_token is unknown"),
        ({"max_tokens": 0}, "max_tokens must be a whole number in 1"),
        ({"max_tokens": True}, "max_tokens must be a whole number"),
        ({"temperature": float("nan")}, "temperature must be a number in 0.0..2.0"),
        ({"top_p": 0}, "top_p must be"),
        ({"engine_args": ["max_model_len"]}, "engine_args must map"),
        ({"engine_args": {"model": "y"}}, "engine_args.model cannot be set"),
        ({"engine_args": {"skip-tokenizer-init": True}}, "skip-tokenizer-init cannot be set"),
        ({"fetch_hidden": "maybe"}, "fetch_hidden must be true or false"),
    ],
)
def test_bad_options_name_the_field(params, words):
    with pytest.raises(ConfigError, match="model 'm'") as caught:
        parse_options(deployment(**params))
    assert words in str(caught.value)


def test_options_are_vllms_by_either_spelling():
    options = parse_options(deployment(engine_args={"max-model-len": 64, "dtype": "float32"}, temperature=0))
    assert options.engine_args == {"max_model_len": 64, "dtype": "float32"}
    assert options.temperature == 0


async def introduced(link, worker):
    """A start of an engine with the toy's worker; what it tells of itself."""
    client = Client(worker)
    engines, routes = Engines(client), Routes()
    info = await engines.install()
    routes.attach(engines, Encoder(client, engines, max_tokens=256, params=dict), info)
    link.attach(routes)
    return info


def weights(seed=0):
    rng = np.random.default_rng(seed)
    A, B = (rng.standard_normal(shape).astype(np.float32) * 0.5 for shape in ((2, D), (D, 2)))
    return LoraWeights(LowRank(A, B, 0.8))


async def test_the_host_computes_without_http_what_the_model_computes():
    link, worker = EngineLink("m"), Worker()
    met = Meeting("m", link, fetch_hidden=False)
    met.meet(await introduced(link, worker))
    host, toy = met.host, worker.toy
    made = await host.encode([1, 2, 3], [4, 5, 6], request_id="r")
    whole = await toy.encode([1, 2, 3], [4, 5, 6], request_id="r", temperature=1.0)
    np.testing.assert_allclose(made.logprobs, whole.logprobs, atol=1e-5)
    signal = TokenSignal(weights(), [np.ones(3, np.float32)], 0.1, None)
    told, expected = await host.gradient([made], signal), await toy.gradient([whole], signal)
    np.testing.assert_allclose(told.micro_B, expected.micro_B, atol=1e-5)
    kl = await host.predicted_kl([made], weights(0), weights(1))
    assert kl == pytest.approx(await toy.predicted_kl([whole], weights(0), weights(1)), rel=1e-4)


async def test_refusals_and_absence_are_told_apart():
    link, worker = EngineLink("m"), Worker()
    met = Meeting("m", link, fetch_hidden=False)
    assert not link.attached
    with pytest.raises(HostAway, match="does not run"):
        await link.json("GET", "info")
    met.meet(await introduced(link, worker))
    with pytest.raises(CaptureGone):
        await met.host.capture("nobody")
    with pytest.raises(HostError, match="outside the vocabulary"):
        await met.host.encode([1], [10_000])
    with pytest.raises(HostError, match="there is no"):
        await link.json("GET", "nothing")
    link.attach(None)
    with pytest.raises(HostAway):
        await met.host.put_adapter("k", 1, weights())


async def test_another_start_is_given_its_adapters_and_another_model_is_not():
    link = EngineLink("m")
    met = Meeting("m", link, fetch_hidden=False)
    met.meet(await introduced(link, Worker()))
    host = met.host
    await host.put_adapter("m/a/*", 2, weights())
    again = Worker()
    met.meet(await introduced(link, again))
    assert met.host is host
    assert (await link.json("GET", "adapters"))["adapters"] == []
    assert (await host.bind(AdapterRef(key="m/a/*", version=2)))[0] == "m/a/*"
    assert [row["key"] for row in (await link.json("GET", "adapters"))["adapters"]] == ["m/a/*"]
    met.meet(await introduced(link, Worker(fingerprint="other")))
    assert met.host is not host
    with pytest.raises(HostAway, match="another model answers now"):
        await host.put_adapter("m/a/*", 3, weights())


async def test_what_was_drawn_after_a_stop_string_is_not_the_answers():
    link, worker = EngineLink("m"), Worker()
    met = Meeting("m", link, fetch_hidden=False)
    met.meet(await introduced(link, worker))
    tokens = worker.toy.answer("r", [1, 2, 3], key=None)
    met.host.shown("r", len(tokens) - 2)
    capture = await met.host.capture("r")
    assert capture.token_ids.tolist() == tokens[:-2]
    assert capture.hidden.shape == (len(tokens) - 2, D)
    signal = TokenSignal(weights(), [np.ones(len(capture), np.float32)], 0.0, None)
    assert (await met.host.gradient([capture], signal)).tokens == len(tokens) - 2


@pytest.mark.parametrize("drawn", [T - 2, T])
async def test_a_capture_is_as_long_as_what_the_client_got(monkeypatch, drawn):
    """However the answer ends, the engine may have drawn more when it hears of it."""
    link, worker = EngineLink("m"), Worker()
    met = Meeting("m", link, fetch_hidden=False)
    met.meet(await introduced(link, worker))
    tokens = worker.toy.answer("r", [1, 2], key=None)

    async def produced(prompt, params, name):
        for i, token in enumerate(tokens[:drawn]):
            reason = "stop" if i == drawn - 1 else None
            yield SimpleNamespace(token_ids=[token], logprobs=None, finish_reason=reason)

    tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(chr(97 + one) for one in ids))
    engine = SimpleNamespace(tokens=produced, tokenizer=tokenizer, eos_ids=frozenset(), context=64, defaults={})
    monkeypatch.setattr(Answers, "_sampling", lambda *_: None)  # of a class of vLLM's
    async with Answers(engine, ask(max_tokens=None), [1, 2], SimpleNamespace(max_tokens=None), {}, met.host) as one:
        shown = []
        while isinstance(piece := await one.queue.get(), Piece):
            shown += piece.token_ids
    calls = worker.calls.count("sona_capture")
    assert (await met.host.capture("r")).token_ids.tolist() == shown == tokens[:drawn]
    assert worker.calls.count("sona_capture") - calls == 1 + (drawn < T)  # only what is too long is asked for again
