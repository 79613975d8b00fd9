"""The host over HTTP against the toy's own closed-form maths, and what restarts do to it."""

import asyncio
import contextlib

import numpy as np
import pytest
from fake_vllm_server import KEY, MODEL, D, T
from toy import ToyHost

from sona_stream.config.settings import Deployment, SonaSettings
from sona_stream.errors import CaptureGone, ConfigError, HostAway, HostError, NotAdapted, NotFound
from sona_stream.events import AdapterRef, Delta, Head, Request
from sona_stream.lora import LoraWeights, LowRank, TokenSignal
from sona_stream_adapters.vllm import VllmBackend, create_backend


def deployment(server, **params):
    return Deployment(
        model_name="m",
        provider="vllm",
        upstream_model=MODEL,
        api_base=server.base,
        params={"control_key": KEY, **params},
    )


@contextlib.asynccontextmanager
async def running(server, settings=None, **params):
    async with create_backend(deployment(server, **params), settings or SonaSettings()) as backend:
        yield backend


def weights(seed=0, size=0.5):
    rng = np.random.default_rng(seed)
    A, B = (rng.standard_normal(shape).astype(np.float32) * size for shape in ((2, D), (D, 2)))
    return LoraWeights(LowRank(A, B, 0.8))


def ask(text="hello", *, id="r1", body=None, adapter=None, **fields):
    body = (
        body or b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "%s"}]}' % text.encode()
    )
    return Request(id=id, endpoint="chat.completions", model="m", body=body, stream=True, adapter=adapter, **fields)


async def collected(backend, request):
    async with backend(request) as events:
        found = [event async for event in events]
    ids = [
        token for event in found if isinstance(event, Delta) for piece in event.pieces for token in piece.token_ids
    ]
    assert isinstance(found[0], Head)
    return found[0], ids


@pytest.mark.parametrize("fetch", [False, True])
async def test_what_it_computes_is_what_the_model_computes(vllm, fetch):
    async with running(vllm, fetch_hidden=fetch) as backend:
        await backend.probe()
        host, toy = backend.host, vllm.worker.toy
        assert (host.hidden_dim, host.fingerprint) == (D, "toy")
        head, ids = await collected(backend, ask())
        capture = await host.capture("r1")
        own = toy.captures["r1"]
        assert capture.token_ids.tolist() == own.token_ids.tolist() == ids
        assert capture.prompt_ids.tolist() == own.prompt_ids.tolist() == list(head.prompt_ids)
        assert capture.hidden.shape == ((T, D) if fetch else (0, D))
        np.testing.assert_array_equal(capture.logprobs, own.logprobs)
        w = weights()
        signal = TokenSignal(w, [np.linspace(-1, 1, T, dtype=np.float32)], 0.3, (0.7, 1.3))
        gradient, expected = await host.gradient([capture], signal), await toy.gradient([own], signal)
        np.testing.assert_array_equal(gradient.micro_A, expected.micro_A)
        np.testing.assert_array_equal(gradient.micro_B, expected.micro_B)
        assert (gradient.loss, gradient.tokens) == (expected.loss, T)
        kl = await host.predicted_kl([capture], weights(1), w)
        assert kl == await toy.predicted_kl([own], weights(1), w)
        evaluation, expected = await host.evaluate([capture], w), await toy.evaluate([own], w)
        np.testing.assert_array_equal(evaluation.logprobs[0], expected.logprobs[0])
        assert evaluation.max_kl_to_base == expected.max_kl_to_base
        curvature, expected = await host.curvature([capture]), await toy.curvature([own])
        np.testing.assert_array_equal(curvature.scores, expected.scores)
        np.testing.assert_array_equal(curvature.outputs.vectors, expected.outputs.vectors)
        assert (curvature.tokens, curvature.rms, curvature.contrast) == (T, expected.rms, None)
        elsewhere = np.random.default_rng(5).standard_normal((9, D)).astype(np.float32)
        curvature, expected = await host.curvature([capture], elsewhere), await toy.curvature([own], elsewhere)
        np.testing.assert_array_equal(curvature.contrast, expected.contrast)


async def test_weights_that_are_not_finite_are_judged_without_asking(vllm):
    async with running(vllm) as backend:
        await backend.probe()
        await collected(backend, ask())
        capture = await backend.host.capture("r1")
        bad = LoraWeights(LowRank(np.full((1, D), np.nan, np.float32), np.zeros((D, 1), np.float32)))
        assert not (await backend.host.evaluate([capture], bad)).finite
        with pytest.raises(HostError, match="not finite"):
            await backend.host.put_adapter("k", 1, bad)
        assert await backend.host.bind(AdapterRef(key="k", version=1)) is None


@pytest.mark.parametrize("answer", ["a text", [3, 1, 4, 1, 5]])
async def test_teacher_forcing_gives_the_log_probabilities_of_the_weights_that_drew_it(vllm, answer):
    async with running(vllm) as backend:
        await backend.probe()
        w = weights()
        capture = await backend.host.encode([1, 2], answer, request_id="x", temperature=0.7, weights=w)
        bare = await backend.host.encode([1, 2], answer, request_id="y", temperature=0.7)
        toy = vllm.worker.toy
        ids = [int(token) for token in capture.token_ids]
        assert capture.request_id == "x"
        assert (ids == answer) if isinstance(answer, list) else (ids[-1] == 0 and len(ids) == len(answer) + 1)
        np.testing.assert_allclose(
            capture.logprobs, (await toy.encode([1, 2], ids, temperature=0.7, weights=w)).logprobs, rtol=1e-5
        )
        np.testing.assert_allclose(
            bare.logprobs, (await toy.encode([1, 2], ids, temperature=0.7)).logprobs, rtol=1e-5
        )


@pytest.mark.parametrize("fetch", [False, True])
async def test_captures_outlive_a_restart(vllm, fetch):
    """The gradient after it is the one before it: encoded again, or given back with its states."""
    async with running(vllm, fetch_hidden=fetch) as backend:
        await backend.probe()
        host = backend.host
        await collected(backend, ask())
        capture = await host.capture("r1")
        signal = TokenSignal(weights(), [np.ones(T, np.float32)], 0.1, (0.5, 2.0))
        before = await host.gradient([capture], signal)
        vllm.stop()
        with pytest.raises(HostAway):
            await host.gradient([capture], signal)
        vllm.start()
        after = await host.gradient([capture], signal)
        np.testing.assert_allclose(after.micro_B, before.micro_B, rtol=1e-5, atol=1e-7)
        assert after.loss == pytest.approx(before.loss, rel=1e-5)
        assert ("sona_keep" in vllm.worker.calls) == fetch
        with pytest.raises(CaptureGone, match=r"sona\.storage"):
            await host.capture("r1")


async def test_adapters_are_put_before_the_first_request_after_a_restart(vllm):
    async with running(vllm) as backend:
        await backend.probe()
        host, w = backend.host, weights(size=3.0)
        await host.put_adapter("m/a/*", 7, w)
        ref = AdapterRef(key="m/a/*", version=7)
        head, _ = await collected(backend, ask(adapter=ref))
        assert head.adapter == ref
        vllm.stop()
        vllm.start()
        assert vllm.worker.toy.adapters == {}
        head, _ = await collected(backend, ask(adapter=ref, id="r2"))
        assert head.adapter == ref
        assert vllm.worker.put_log == [("m/a/*", 7)]
        assert vllm.app.seen[0]["vllm_xargs"] == {"sona": "m/a/*", "sona_rid": "r2"}  # nothing came before the put
        assert vllm.worker.toy.captures["r2"].adapter_versions.tolist() == [7] * T
        assert backend.host is host


async def test_another_model_of_the_same_width_gets_nothing(vllm):
    async with running(vllm) as backend:
        await backend.probe()
        host = backend.host
        await host.put_adapter("m/a/*", 1, weights())
        await collected(backend, ask())
        capture = await host.capture("r1")
        vllm.stop()
        vllm.start(seed=9, fingerprint="other")
        head, _ = await collected(backend, ask(adapter=AdapterRef(key="m/a/*", version=1), id="r2"))
        assert head.adapter is None
        assert vllm.worker.put_log == []
        assert "sona" not in vllm.app.seen[0]["vllm_xargs"]
        assert backend.host is not host
        assert backend.host.fingerprint == "other"
        with pytest.raises(HostAway, match="another model"):
            await host.gradient([capture], TokenSignal(weights(), [np.ones(T, np.float32)]))
        with pytest.raises(HostError, match="another model"):
            await backend.host.evaluate([capture], weights())


async def test_an_evicted_adapter_is_put_again_when_it_is_wanted(vllm):
    vllm.worker.budget = 1
    async with running(vllm) as backend:
        await backend.probe()
        for name in ("m/a/*", "m/b/*"):
            await backend.host.put_adapter(name, 1, weights())
        assert list(vllm.worker.toy.adapters) == ["m/b/*"]
        head, _ = await collected(backend, ask(adapter=AdapterRef(key="m/a/*", version=1)))
        assert head.adapter is not None
        assert list(vllm.worker.toy.adapters) == ["m/a/*"]


async def test_a_pinned_version_or_none(vllm):
    async with running(vllm) as backend:
        await backend.probe()
        await backend.host.put_adapter("m/a/*", 3, weights())
        await backend.host.put_adapter("m/a/*@2", 2, weights(1))
        head, _ = await collected(backend, ask(adapter=AdapterRef(key="m/a/*", version=2, pinned=True)))
        assert (head.adapter.version, head.adapter.pinned) == (2, True)
        assert vllm.app.seen[0]["vllm_xargs"]["sona"] == "m/a/*@2"
        with pytest.raises(NotFound):
            await collected(backend, ask(adapter=AdapterRef(key="m/a/*", version=1, pinned=True)))
        await backend.host.drop_adapter("m/a/*")
        head, _ = await collected(backend, ask(adapter=AdapterRef(key="m/a/*", version=3)))
        assert head.adapter is None


async def test_a_refused_version_leaves_the_one_before_it(vllm):
    async with running(vllm) as backend:
        await backend.probe()
        await backend.host.put_adapter("m/a/*", 1, weights())
        with pytest.raises(HostError):
            await backend.host.put_adapter("m/a/*", 2, LoraWeights(LowRank(np.zeros((1, 3)), np.zeros((3, 1)))))
        head, _ = await collected(backend, ask(adapter=AdapterRef(key="m/a/*", version=1)))
        assert head.adapter.version == 1


@pytest.mark.parametrize(
    "extra",
    [
        b'"vllm_xargs": {"sona": "m/victim/*", "sona_version": 1, "mine": 3}',
        b'"vllm_xargs": {"mine": 3}, "vllm\\u005fxargs": {"mine": 3, "\\u0073ona": "m/victim/*"}',
        b'"vllm_xargs": {"SONA": "m/victim/*", "mine": 3}',
    ],
)
async def test_what_a_client_sends_binds_nothing(vllm, extra):
    async with running(vllm) as backend:
        await backend.probe()
        await backend.host.put_adapter("m/victim/*", 1, weights())
        body = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}], %s}' % extra
        head, _ = await collected(backend, ask(body=body))
        assert vllm.app.seen[0]["vllm_xargs"] == {"mine": 3, "sona_rid": "r1"}
        assert head.adapter is None


async def test_bodies_keep_every_byte_but_for_what_is_added(vllm):
    async with running(vllm, SonaSettings(storage="none", learning="off")) as backend:
        await backend.probe()
        _, ids = await collected(backend, ask())
        assert ids == []
        assert vllm.app.seen == [
            {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "hello"}]}
        ]


async def test_several_choices_are_not_captured(vllm):
    from sona_stream.events import Sampling

    async with running(vllm) as backend:
        await backend.probe()
        await collected(backend, ask(sampling=Sampling(n=2)))
        assert "sona_rid" not in vllm.app.seen[0].get("vllm_xargs", {})


async def test_without_the_plugin_answers_pass_and_the_reason_is_known(vllm):
    vllm.stop()
    vllm.start(plugin=False)
    async with running(vllm) as backend:
        await backend.probe()
        assert backend.host is None
        assert "no plug-in" in backend.host_problem
        head, _ = await collected(backend, ask(adapter=AdapterRef(key="m/a/*", version=1)))
        assert head.adapter is None
        vllm.stop()
        vllm.start()
        await backend.probe()
        assert backend.host_problem == ""
        assert backend.host is not None


async def test_a_hook_that_switched_itself_off_is_seen(vllm):
    async with running(vllm) as backend:
        await backend.probe()
        await backend.host.put_adapter("m/a/*", 1, weights())
        vllm.worker.disabled = "logits: RuntimeError: forced"
        await backend.probe()
        assert "RuntimeError: forced" in backend.host_problem
        head, _ = await collected(backend, ask(adapter=AdapterRef(key="m/a/*", version=1)))
        assert head.adapter is None


async def test_the_answer_after_the_failure_already_says_so(vllm):
    """Before the next probe: the server tells with the answer that nothing was bound to it."""
    async with running(vllm) as backend:
        await backend.probe()
        await backend.host.put_adapter("m/a/*", 1, weights())
        ref = AdapterRef(key="m/a/*", version=1)
        vllm.worker.disabled = "logits: RuntimeError: forced"
        await asyncio.sleep(0.12)  # what was asked a tenth of a second ago is believed
        head, ids = await collected(backend, ask(adapter=ref))
        assert head.adapter is None
        assert "off before: logits: RuntimeError: forced" in head.no_capture
        assert not [name for name, _ in head.headers if name.startswith(b"x-sona")]
        assert len(ids) == T
        assert backend.host is None
        head, ids = await collected(backend, ask(adapter=ref, id="r2"))
        assert (head.adapter, len(ids)) == (None, T)  # token ids are kept: it can be learned from later
        assert vllm.app.seen[-1].get("vllm_xargs") is None
        assert "forced" in head.no_capture
        vllm.worker.disabled = ""
        await asyncio.sleep(0.12)
        await backend.probe()
        head, _ = await collected(backend, ask(adapter=ref, id="r3"))
        assert (head.adapter, head.no_capture) == (ref, "")


async def test_a_look_that_an_answer_overtook_does_not_say_what_was_before_it(vllm):
    """The server found the hook off while the request was on its way; the engine knows that it failed in it."""
    async with running(vllm) as backend:
        await backend.probe()
        await backend.host.put_adapter("m/a/*", 1, weights())
        ref = AdapterRef(key="m/a/*", version=1)
        await asyncio.sleep(0.12)
        vllm.worker.breaks, vllm.worker.overtaken = "logits: RuntimeError: forced", asyncio.Event()
        head, ids = await collected(backend, ask(adapter=ref))
        assert "off before: logits: RuntimeError: forced" in head.no_capture
        assert (head.adapter, ids) == (None, [])  # the adapter may have drawn some: nothing learns from them
        assert list(backend.take_unserved()) == ["r1"]


async def test_an_answer_in_which_the_hook_fails_is_told_afterwards(vllm):
    async with running(vllm) as backend:
        await backend.probe()
        host = backend.host
        await host.put_adapter("m/a/*", 1, weights())
        vllm.worker.breaks = "logits: RuntimeError: forced"
        head, _ = await collected(backend, ask(adapter=AdapterRef(key="m/a/*", version=1)))
        assert head.adapter is not None  # what was sent cannot be taken back
        with pytest.raises(NotAdapted, match="failed while it was being answered"):
            await host.capture("r1")
        await asyncio.sleep(0.12)
        with pytest.raises(HostAway, match="forced"):
            await host.encode([1, 2], [3, 4])
        await backend.probe()
        assert list(backend.take_unserved()) == ["r1"]
        await backend.probe()
        assert backend.take_unserved() == {}


async def test_a_wrong_key_is_named_and_never_shown(vllm):
    async with running(vllm, control_key="not-the-key-of-the-tests") as backend:
        await backend.probe()
        assert "SONA_VLLM_KEY" in backend.host_problem
        assert "not-the-key" not in backend.host_problem


def test_options_are_checked(vllm):
    for params, named in (({"control_key": "short"}, "control_key"), ({"fetch_hidden": "perhaps"}, "fetch_hidden")):
        with pytest.raises(ConfigError, match=named):
            create_backend(deployment(vllm, **params), SonaSettings())
    plain = Deployment(model_name="m", provider="vllm", upstream_model="x", api_base=vllm.base)
    assert not isinstance(create_backend(plain, SonaSettings()), VllmBackend)


async def test_captures_of_another_model_and_empty_ones_are_refused(vllm):
    async with running(vllm) as backend:
        await backend.probe()
        other = await ToyHost(fingerprint="another").encode([1], [2, 3])
        with pytest.raises(HostError, match="another model"):
            await backend.host.evaluate([other], weights())
        with pytest.raises(HostError, match="at least one token"):
            await backend.host.curvature([])
