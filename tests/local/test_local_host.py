"""Adapters, captures and learning jobs on a running model."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import numpy as np
import pytest
import torch
from tiny_model import ask, collect, running

from sona_stream.config.settings import SonaSettings
from sona_stream.errors import CaptureGone, HostError, NotFound
from sona_stream.events import AdapterRef, Delta
from sona_stream.lora import LoraWeights, LowRank, TokenSignal
from sona_stream_adapters.local.capture import CaptureBuilder, CaptureRing

D = 48


def weights(seed=0, rank=2, size=0.3, base=None):
    r = np.random.default_rng(seed)
    A, B = r.standard_normal((rank, D)) * size, r.standard_normal((D, rank)) * size
    return LoraWeights(LowRank(A.astype(np.float32), B.astype(np.float32), 1.5), base)


REF = AdapterRef(key="tiny/default/*", version=1)


async def test_an_adapter_changes_its_own_row_and_no_other_bit(backend):
    prompts = ["the quick", "brown fox", "jumps over", "the lazy"]

    async def batch(adapter):
        requests = [
            ask(p, id=f"r{i}", max_tokens=24, temperature=1.0, seed=i, adapter=adapter if i == 2 else None)
            for i, p in enumerate(prompts)
        ]
        tasks = [asyncio.create_task(collect(backend, request)) for request in requests]
        # All four arrive before the torch thread looks: the same shapes in both runs.
        with backend._engine.scheduler._wake:
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(backend._engine.scheduler._arrived) == 4
        answers = await asyncio.gather(*tasks)
        captures = [await backend.host.capture(request.id) for request in requests]
        return answers, captures

    plain, before = await batch(None)
    await backend.host.put_adapter(REF.key, 1, weights())
    adapted, after = await batch(REF)
    for row in (0, 1, 3):
        assert plain[row].ids() == adapted[row].ids()
        assert plain[row].logprobs() == adapted[row].logprobs()  # bit for bit
        assert before[row].hidden.tobytes() == after[row].hidden.tobytes()
    assert plain[2].logprobs() != adapted[2].logprobs()
    assert adapted[2].head.adapter == REF
    assert adapted[0].head.adapter is None
    assert after[2].adapter_versions.tolist() == [1] * 24
    assert after[0].adapter_versions.tolist() == [0] * 24


async def test_a_capture_is_what_the_model_computed(backend, reference):
    await backend.host.put_adapter(REF.key, 3, weights(base=weights(1, rank=5).micro))
    answer = await collect(backend, ask(max_tokens=10, temperature=0.7, seed=2, top_p=0.9, adapter=REF))
    capture = await backend.host.capture("r")
    ids = list(answer.head.prompt_ids) + answer.ids()
    with torch.no_grad():
        hidden = reference.get_decoder()(input_ids=torch.tensor([ids])).last_hidden_state[0]
    expected = hidden[len(answer.head.prompt_ids) - 1 : -1].numpy()
    np.testing.assert_allclose(capture.hidden, expected, rtol=1e-3, atol=1e-3)
    logits = (
        expected + weights(base=weights(1, rank=5).micro).delta(expected)
    ) @ reference.lm_head.weight.detach().numpy().T
    logp = torch.log_softmax(torch.from_numpy(logits) / 0.7, 1).numpy()
    np.testing.assert_allclose(capture.logprobs, logp[np.arange(10), answer.ids()], atol=2e-3)
    assert capture.token_ids.tolist() == answer.ids()
    assert capture.prompt_ids.tolist() == list(answer.head.prompt_ids)
    assert capture.adapter_versions.tolist() == [3] * 10
    assert (capture.adapter_key, capture.temperature) == (REF.key, 0.7)
    assert capture.fingerprint == backend.host.fingerprint


async def test_encoding_an_answer_gives_the_capture_of_generating_it(backend):
    await backend.host.put_adapter(REF.key, 1, weights())
    await collect(backend, ask("the " * 30, max_tokens=40, temperature=0.0, adapter=REF))
    made = await backend.host.capture("r")
    again = await backend.host.encode(
        made.prompt_ids, made.token_ids, temperature=0.0, weights=weights(), request_id="e", adapter_key="k"
    )
    np.testing.assert_allclose(again.hidden, made.hidden, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(again.logprobs, made.logprobs, atol=2e-3)
    assert (again.request_id, again.adapter_key) == ("e", "k")
    text = await backend.host.encode([5, 6], "lazy dog")
    assert text.token_ids[-1] == 0  # the end token
    assert backend._engine.model.tokenizer.decode(text.token_ids[:-1]) == "lazy dog"
    with pytest.raises(CaptureGone):
        await backend.host.capture("e")


async def test_versions_swap_between_tokens_and_pinned_ones_stay(backend):
    host = backend.host
    await host.put_adapter(REF.key, 1, weights(1))
    await host.put_adapter(f"{REF.key}@1", 1, weights(1))
    pinned = dataclasses.replace(REF, pinned=True)

    async def watched(request, act):
        async with backend(request) as events:
            seen = 0
            async for event in events:
                if isinstance(event, Delta):
                    seen += len(event.pieces)
                    if seen >= 5:
                        await act()
        return await host.capture(request.id)

    async def publish():
        await host.put_adapter(REF.key, 2, weights(2))

    moving, still = await asyncio.gather(
        watched(ask(max_tokens=150, adapter=REF, id="a"), publish),
        watched(ask(max_tokens=150, adapter=pinned, id="b"), publish),
    )
    changes = np.flatnonzero(np.diff(moving.adapter_versions))
    assert len(changes) == 1
    assert set(moving.adapter_versions.tolist()) == {1, 2}
    assert set(still.adapter_versions.tolist()) == {1}

    async def drop():
        await host.drop_adapter(REF.key)

    dropped = await watched(ask(max_tokens=150, adapter=REF, id="c"), drop)
    assert set(dropped.adapter_versions.tolist()) == {2, 0}
    assert (await collect(backend, ask(adapter=REF))).head.adapter is None
    assert (await collect(backend, ask(adapter=pinned))).head.adapter == pinned
    with pytest.raises(NotFound, match="@7"):
        await collect(backend, ask(adapter=AdapterRef(key=REF.key, version=7, pinned=True)))


async def test_a_step_against_the_gradient_lowers_the_loss(backend):
    host = backend.host
    await collect(backend, ask(max_tokens=30, temperature=1.0, seed=1))
    capture = await host.capture("r")
    now = weights(size=0.05)
    signal = TokenSignal(now, [np.ones(30, np.float32)])
    gradient = await host.gradient([capture], signal)
    rate = 1e-3 / float(np.abs(gradient.micro_B).max())
    micro = LowRank(now.micro.lora_A - rate * gradient.micro_A, now.micro.lora_B - rate * gradient.micro_B, 1.5)
    after = await host.evaluate([capture], LoraWeights(micro))
    assert float(after.logprobs[0].mean()) > gradient.mean_logprob
    assert await host.predicted_kl([capture], now, LoraWeights(micro)) > 0
    assert await host.predicted_kl([capture], now, LoraWeights(micro), top_k=5) > 0


async def test_learning_in_slices_does_not_starve_a_stream(backend, monkeypatch):
    host = backend.host
    await collect(backend, ask(max_tokens=400, temperature=1.0, seed=1, id="c"))
    capture = await host.capture("c")
    order = []
    run = type(backend._engine.scheduler)._advance_job
    monkeypatch.setattr(
        type(backend._engine.scheduler), "_advance_job", lambda self: (order.append("slice"), run(self))
    )

    async def stream():
        async with backend(ask(max_tokens=40)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    order.extend(["token"] * len(event.pieces))

    signal = TokenSignal(weights(), [np.ones(400, np.float32)] * 4)
    gradient, _ = await asyncio.gather(host.gradient([capture] * 4, signal), stream())
    assert gradient.tokens == 1600
    assert order.count("token") == 40
    assert order.count("slice") >= 25


async def test_a_cancelled_job_ends_and_the_next_one_runs(backend):
    host = backend.host
    await collect(backend, ask(max_tokens=400, temperature=1.0, seed=1, id="c"))
    capture = await host.capture("c")
    signal = TokenSignal(weights(), [np.ones(400, np.float32)] * 50)
    task = asyncio.create_task(host.gradient([capture] * 50, signal))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    began = time.monotonic()
    await host.evaluate([capture], weights())
    assert time.monotonic() - began < 5
    assert not backend._engine.scheduler._jobs


def test_the_ring_keeps_the_newest():
    def capture(name, tokens):
        builder = CaptureBuilder(D)
        for token in range(tokens):
            builder.add(torch.full((D,), float(token)), token, -1.0, 0)
        options = {"fingerprint": "f", "prompt_ids": [1], "adapter_key": None, "temperature": 1.0}
        return builder.finish(request_id=name, **options)

    size = capture("x", 100).nbytes
    ring = CaptureRing(3 * size)
    for i in range(5):
        ring.put(capture(f"r{i}", 100))
        assert ring.nbytes <= 3 * size
    ring.put(capture("r4", 100))  # again: replaces
    ring.put(capture("huge", 400))  # never fits, and pushes nobody out
    for gone in ("r0", "r1", "huge"):
        with pytest.raises(CaptureGone, match="capture_mb"):
            ring.get(gone)
    assert ring.get("r2").hidden[99, 0] == 99
    ring.forget("r3")
    ring.forget("r3")
    assert ring.nbytes == 2 * size


async def test_released_captures_are_gone(backend):
    await collect(backend, ask())
    await backend.host.release("r")
    await backend.host.release("r")
    with pytest.raises(CaptureGone):
        await backend.host.capture("r")


async def test_nothing_is_captured_when_nothing_is_to_be_learned(backend, tiny_folder):
    await collect(backend, ask(learn=False))
    with pytest.raises(CaptureGone):
        await backend.host.capture("r")
    async with running(tiny_folder, settings=SonaSettings(learning="off")) as silent:
        await collect(silent, ask())
        with pytest.raises(CaptureGone):
            await silent.host.capture("r")


async def test_bad_weights_are_refused_by_name(backend):
    host = backend.host
    good = weights().micro
    bad = {
        r"micro.lora_A has shape \(2, 47\)": LowRank(good.lora_A[:, :-1], good.lora_B),
        r"micro.lora_B has shape \(48, 3\)": LowRank(good.lora_A, np.zeros((D, 3), np.float32)),
        "micro: rank 300 is outside 1..256": LowRank(
            np.zeros((300, D), np.float32), np.zeros((D, 300), np.float32)
        ),
        "micro: every entry": LowRank(good.lora_A * np.nan, good.lora_B),
        "the scaling must be a finite": LowRank(good.lora_A, good.lora_B, float("inf")),
    }
    for message, pair in bad.items():
        with pytest.raises(HostError, match=message):
            await host.put_adapter("k", 1, LoraWeights(pair))
        with pytest.raises(HostError, match=message.replace("micro", "base")):
            await host.put_adapter("k", 1, LoraWeights(good, pair))
    with pytest.raises(HostError, match="versions count from 1"):
        await host.put_adapter("k", 0, weights())
    assert backend._engine.adapters.current(AdapterRef(key="k", version=1)) is None


async def test_bad_signals_are_refused_by_name(backend):
    host = backend.host
    await collect(backend, ask())
    capture = await host.capture("r")
    ones = np.ones(8, np.float32)
    cases = [
        ([], [], {}, "at least one token"),
        ([capture], [], {}, "0 arrays for 1"),
        ([capture], [ones[:3]], {}, r"shape \(3,\), expected \(8,\)"),
        ([capture], [ones * np.inf], {}, "finite"),
        ([capture], [ones], {"anchor": -1.0}, "anchor"),
        ([capture], [ones], {"ratio_clip": (1.1, 1.2)}, "ratio_clip"),
        ([capture], [ones], {"top_k": 0}, "top_k"),
        ([dataclasses.replace(capture, fingerprint="other")], [ones], {}, "another model"),
        ([dataclasses.replace(capture, hidden=capture.hidden[:, :5])], [ones], {}, r"hidden has shape \(8, 5\)"),
        ([dataclasses.replace(capture, hidden=capture.hidden * np.nan)], [ones], {}, "finite"),
        ([dataclasses.replace(capture, temperature=-1.0)], [ones], {}, "temperature"),
        (
            [dataclasses.replace(capture, token_ids=capture.token_ids + 10_000)],
            [ones],
            {},
            "outside the vocabulary",
        ),
    ]
    for captures, advantages, options, message in cases:
        with pytest.raises(HostError, match=message):
            await host.gradient(captures, TokenSignal(weights(), advantages, **options))
    empty = dataclasses.replace(capture, hidden=np.zeros((0, D), np.float32))
    with pytest.raises(CaptureGone, match="no hidden states"):
        await host.gradient([empty], TokenSignal(weights(), [ones]))
    for prompt, answer, message in [
        ([], "x", "prompt_ids: at least"),
        ([1], [], "answer: at least"),
        ([1] * 500, [1] * 20, "context is 512"),
        ([-1], [1], "prompt_ids: a token"),
        ([1], [999], "answer: a token"),
    ]:
        with pytest.raises(HostError, match=message):
            await host.encode(prompt, answer)
    with pytest.raises(HostError, match="temperature"):
        await host.encode([1], [1], temperature=float("nan"))
    assert not (
        await host.evaluate(
            [capture],
            LoraWeights(
                weights().micro, LowRank(np.full((1, D), np.nan, np.float32), np.zeros((D, 1), np.float32))
            ),
        )
    ).finite
