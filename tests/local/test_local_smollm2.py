"""The default model itself."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import pytest_asyncio
import torch
from tiny_model import Answer, ask, collect, running

from sona_stream.errors import ModelUnavailable
from sona_stream.events import AdapterRef
from sona_stream.lora import LoraWeights, LowRank, TokenSignal
from sona_stream_adapters.local.weights import MANIFEST, SMOLLM2, pull_model

pytestmark = pytest.mark.model
one_loop = pytest.mark.asyncio(loop_scope="module")  # the model is loaded once

D = 576


@pytest.fixture(scope="module")
def folder():
    try:
        return pull_model(SMOLLM2.name, progress=lambda line: None)
    except ModelUnavailable as error:
        pytest.skip(f"the model cannot be had: {error}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(folder):
    async with running(SMOLLM2.name) as made:
        yield made


def chat(text, **options):
    return ask(text, endpoint="chat.completions", **{"temperature": None, "max_tokens": None, **options})


def test_the_conversion_is_the_pinned_one(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["gguf_sha256"] == SMOLLM2.gguf_sha256
    config = json.loads((folder / "config.json").read_text())
    assert (config["rms_norm_eps"], config["rope_theta"], config["hidden_size"]) == (1e-5, 100000.0, D)


@one_loop
async def test_what_is_the_capital_of_france(backend):
    answer = await collect(backend, chat("What is the capital of France?"))
    assert answer.text() == "The capital of France is Paris."
    assert answer.finish.reason == "stop"
    capture = await backend.host.capture("r")
    assert capture.token_ids[-1] == 2
    again = await backend.host.encode(capture.prompt_ids, answer.text())
    assert again.token_ids.tolist() == capture.token_ids.tolist()
    np.testing.assert_allclose(again.hidden, capture.hidden, atol=2e-2 * np.abs(capture.hidden).max())


@one_loop
async def test_one_adapter_among_four_answers(backend):
    r = np.random.default_rng(0)
    pair = LowRank(*(x.astype(np.float32) * 0.1 for x in (r.standard_normal((2, D)), r.standard_normal((D, 2)))))
    ref = AdapterRef(key="smollm2/default/*", version=1)

    async def four(adapter) -> list[Answer]:
        tasks = [
            asyncio.create_task(
                collect(
                    backend,
                    chat(
                        f"Tell me about the number {i}.",
                        id=f"r{i}",
                        temperature=1.0,
                        seed=i,
                        max_tokens=12,
                        adapter=adapter if i == 2 else None,
                    ),
                )
            )
            for i in range(4)
        ]
        with backend._engine.scheduler._wake:  # all arrive together: the same shapes in both runs
            for _ in range(20):
                await asyncio.sleep(0)
        return await asyncio.gather(*tasks)

    plain = await four(None)
    await backend.host.put_adapter(ref.key, 1, LoraWeights(pair))
    adapted = await four(ref)
    for i in (0, 1, 3):
        assert (plain[i].ids(), plain[i].logprobs()) == (adapted[i].ids(), adapted[i].logprobs())
    assert plain[2].logprobs() != adapted[2].logprobs()


@one_loop
async def test_its_gradient_equals_autograd_in_double(backend):
    await collect(backend, chat("Name three colours.", temperature=1.0, seed=1, max_tokens=12))
    capture = await backend.host.capture("r")
    r = np.random.default_rng(0)
    A, B = (x.astype(np.float32) * 0.02 for x in (r.standard_normal((2, D)), r.standard_normal((D, 2))))
    advantage = r.standard_normal(len(capture)).astype(np.float32)
    signal = TokenSignal(LoraWeights(LowRank(A, B, 1.5)), [advantage], anchor=0.3, ratio_clip=(0.7, 1.3))
    ours = await backend.host.gradient([capture], signal)

    W, h = backend._engine.model.lm_head.double(), torch.from_numpy(capture.hidden).double()
    a, b = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (A, B))
    logp = torch.log_softmax((h + 1.5 * (h @ a.T) @ b.T) @ W.T, 1)
    logp0 = torch.log_softmax(h @ W.T, 1)
    chosen = logp.gather(1, torch.from_numpy(capture.token_ids).long()[:, None])[:, 0]
    adv = torch.from_numpy(advantage).double()
    rho = (chosen - torch.from_numpy(capture.logprobs)).exp().detach()
    factor = torch.where(rho.clamp(0.7, 1.3) * adv < rho * adv, 0.0, rho)
    kl = (logp.exp() * (logp - logp0)).sum(1)
    (-(adv * factor * chosen).sum() + 0.3 * kl.sum()).backward()
    for mine, reference in ((ours.micro_A, a.grad.numpy()), (ours.micro_B, b.grad.numpy())):
        assert np.abs(mine - reference).max() <= 1e-5 * np.abs(reference).max()
    assert ours.mean_kl_to_base == pytest.approx(float(kl.detach().mean()), rel=1e-4)
