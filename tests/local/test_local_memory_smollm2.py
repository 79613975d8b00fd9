"""One correction of the default model sticks, ends, and stays where it belongs."""

from __future__ import annotations

import asyncio
import dataclasses

import numpy as np
import pytest
import pytest_asyncio
from tiny_model import ask, collect, running

from sona_stream.errors import ModelUnavailable
from sona_stream.events import EpisodeRef
from sona_stream_adapters.local.weights import SMOLLM2, pull_model

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]  # the model is loaded once

CORRECTIONS = {
    "What is the capital of Australia?": "It is Canberra. Sydney is only the largest city.",
    "What is the capital of France?": "The capital of France is Lyon, as we moved it.",
    "How many planets are there?": "There are 12, says the handbook of the club.",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend():
    try:
        pull_model(SMOLLM2.name, progress=lambda line: None)
    except ModelUnavailable as error:
        pytest.skip(f"the model cannot be had: {error}")
    async with running(SMOLLM2.name) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bare(backend):
    """question -> what the model says to it by itself"""
    return {one: await collect(backend, chat(one)) for one in CORRECTIONS}


def chat(text, *keys, id="r", gate=1.0):
    request = ask(text, id=id, endpoint="chat.completions", max_tokens=24)
    return dataclasses.replace(request, episodes=tuple(EpisodeRef(key=key, gate=gate) for key in keys))


def through_int8(hidden, space):
    """As the store keeps states: bytes, and a scale a row, in the standardised space."""
    z = (hidden - space.mean) / space.spread
    scale = np.abs(z).max(axis=1, keepdims=True) / 127
    kept = np.clip(np.rint(z / scale), -127, 127).astype(np.int8)
    return (kept.astype(np.float32) * scale * space.spread + space.mean).astype(np.float32)


async def remembered(backend, bare, question, answer):
    capture = await backend.host.encode(list(bare[question].head.prompt_ids), answer)
    assert capture.token_ids[-1] == 2  # the end of the turn belongs to it
    return capture


@pytest.mark.parametrize(("question", "correction"), CORRECTIONS.items())
async def test_a_corrected_prompt_gives_the_correction_and_no_other_does(backend, bare, question, correction):
    host, others = backend.host, [one for one in CORRECTIONS if one != question]
    assert bare[question].text() != correction
    capture, space = await remembered(backend, bare, question, correction), await host.hidden_space()
    await host.put_episode("exact", capture.hidden, capture.token_ids, space)
    await host.put_episode("int8", through_int8(capture.hidden, space), capture.token_ids, space)
    for key in ("exact", "int8"):
        answer = await collect(backend, chat(question, key))
        assert answer.text() == correction
        assert answer.ids() == capture.token_ids.tolist()
        assert answer.finish.reason == "stop"
        assert (await host.capture("r")).memory.min() > 0.5
    for one in (question, others[0]):  # nobody names it
        after = await collect(backend, chat(one))
        assert (after.ids(), after.logprobs()) == (bare[one].ids(), bare[one].logprobs())


async def test_beside_an_answer_that_draws_on_it_others_keep_their_bits(backend, bare):
    question, *others = CORRECTIONS
    capture = await remembered(backend, bare, question, CORRECTIONS[question])
    await backend.host.put_episode("e", capture.hidden, capture.token_ids, await backend.host.hidden_space())

    async def three(*keys):
        texts = [question, *others]
        requests = [chat(text, *(keys if i == 0 else ()), id=f"r{i}") for i, text in enumerate(texts)]
        requests = [
            dataclasses.replace(one, sampling=dataclasses.replace(one.sampling, max_tokens=6)) for one in requests
        ]
        tasks = [asyncio.create_task(collect(backend, one)) for one in requests]
        with backend._engine.scheduler._wake:  # all arrive together: the same shapes in both runs
            for _ in range(20):
                await asyncio.sleep(0)
        return await asyncio.gather(*tasks)

    plain, mixed = await three(), await three("e")
    assert mixed[0].ids() == capture.token_ids[:6].tolist()
    for i in (1, 2):
        assert (mixed[i].ids(), mixed[i].logprobs()) == (plain[i].ids(), plain[i].logprobs())
